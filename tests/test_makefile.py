"""``make`` takes the newest Python that the package supports, and says which, or that there is none."""

import os
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make here")


def fake(folder: Path, name: str, version: tuple[int, int] | None) -> None:
    """An interpreter that answers as that version does to the Makefile's question; None is one that does not start."""
    supported = version is not None and (3, 11) <= version < (3, 14)
    (folder / name).write_text(f"#!/bin/sh\nexit {0 if supported else 1}\n")
    (folder / name).chmod(0o755)


#: Interpreters on PATH, and the one that is taken.
CHOICES = {
    "newest": ({"python3.11": (3, 11), "python3.13": (3, 13), "python3.12": (3, 12), "python3": (3, 11)}, "python3.13"),
    "one in the middle": ({"python3.12": (3, 12), "python3": (3, 14)}, "python3.12"),
    "the plain one": ({"python3": (3, 12)}, "python3"),
    "a plain one that is too new": ({"python3": (3, 14)}, None),
    "a plain one that is too old": ({"python3": (3, 10)}, None),
    "a newer one that does not start": ({"python3.13": None, "python3.11": (3, 11)}, "python3.11"),
    "3.14 beside": ({"python3.14": (3, 14), "python3.11": (3, 11)}, "python3.11"),
    "none": ({}, None),
}


@pytest.mark.parametrize("case", CHOICES)
def test_the_newest_supported_python_is_taken(case: str, tmp_path: Path) -> None:
    found, taken = CHOICES[case]
    for name, version in found.items():
        fake(tmp_path, name, version)
    (tmp_path / "sh").symlink_to("/bin/sh")
    make = shutil.which("make")
    assert make is not None
    # A variable of whoever runs the tests would be a choice of its own.
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHON", "MAKEFLAGS", "MAKELEVEL")}
    said = subprocess.run(
        [make, "--no-print-directory", "-f", str(ROOT / "Makefile"), "python"],
        env={**environment, "PATH": str(tmp_path)}, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    if taken is None:
        assert said.returncode != 0
        assert "no Python 3.11, 3.12 or 3.13" in said.stderr and "PYTHON=/path/to/python" in said.stderr
    else:
        assert said.stdout == f"Python: {tmp_path / taken}\n", said.stderr


def test_the_question_is_understood_by_a_real_python() -> None:
    said = subprocess.run(["make", "--no-print-directory", "python"], capture_output=True, text=True, cwd=ROOT)
    assert said.returncode == 0 or "no Python 3.11" in said.stderr


def test_the_versions_of_the_makefile_are_those_of_the_package() -> None:
    assert 'requires-python = ">=3.11,<3.14"' in (ROOT / "pyproject.toml").read_text()
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text()


def test_the_lock_is_of_these_dependencies() -> None:
    """uv refuses a lock that is not (``make lock`` renews it); here its own record of what was asked is compared."""
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = asked["optional-dependencies"]
    given = [*asked["dependencies"], *(each for extra in extras.values() for each in extra)]
    locked = tomllib.loads((ROOT / "uv.lock").read_text())
    (ours,) = (package for package in locked["package"] if package["name"] == "bsq-lightning")
    kept = {(each["name"], SpecifierSet(each.get("specifier", ""))) for each in ours["metadata"]["requires-dist"]}
    assert kept == {(canonicalize_name(each.name), each.specifier) for each in map(Requirement, given)}
    sources = {package["source"].get("registry", "here") for package in locked["package"]}
    assert sources == {"https://pypi.org/simple", "here"}, "a registry of one machine only"
