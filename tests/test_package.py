"""The commands work from a checkout, from another folder, and from an installed wheel, configs included."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cli.commands import TINY, run

ROOT = Path(__file__).parents[1]


def yamls(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.yaml")}


def test_torch_and_torchvision_are_a_pair() -> None:
    code = "import torch, torchvision; torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_wheel_has_every_config_and_runs_from_another_folder(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(tmp_path / "dist"), str(ROOT)], check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")  # built from the sdist
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    assert yamls(tmp_path / "site" / "bsq_lightning" / "conf") == yamls(ROOT / "conf")
    (tmp_path / "elsewhere").mkdir()
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", "import bsq_lightning; print(bsq_lightning.__file__)"],
        env=environment, cwd=tmp_path / "elsewhere", capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert str(tmp_path / "site") in result.stdout, "the checkout was tested instead of the wheel"
    code, output = run("train", *TINY, cwd=tmp_path / "elsewhere", PYTHONPATH=str(tmp_path / "site"))
    assert code == 0, output
    assert list((tmp_path / "elsewhere" / "outputs").rglob("summary.json"))


@pytest.mark.slow
def test_multirun_from_another_folder(tmp_path: Path) -> None:
    short = ["stages.bits.epochs=1", "stages.finetune.epochs=0", "data.limit_train=64"]
    code, output = run("train", "-m", *TINY, *short, "reg.alpha=0,1", "hydra.sweep.dir=sweep", cwd=tmp_path)
    assert code == 0, output
    assert len(list((tmp_path / "sweep").glob("*/summary.json"))) == 2


@pytest.mark.slow
def test_the_schemes_of_one_run_travel_to_another(tmp_path: Path) -> None:
    code, output = run("train", *TINY, f"hydra.run.dir={tmp_path / 'one'}")
    assert code == 0, output
    tiny = [override for override in TINY if not override.startswith("reg.")]
    code, output = run(
        "train", *tiny, "quant=from_scheme", "reg=none", f"scheme={tmp_path / 'one' / 'scheme.json'}",
        f"model.weights={tmp_path / 'one' / 'checkpoints' / 'float.ckpt'}", f"hydra.run.dir={tmp_path / 'two'}",
    )  # fmt: skip
    assert code == 0, output
    from bsq_lightning.scheme import Scheme

    one, two = (Scheme.load(tmp_path / name / "scheme.json").precisions() for name in ("one", "two"))
    assert one == two


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["bsq_reference", "uniform"])
def test_other_methods_run_to_the_end_and_evaluate(quant: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = run("train", *TINY, f"quant={quant}", f"hydra.run.dir={folder}")
    assert code == 0, output
    code, again = run("evaluate", f"run={folder}")
    assert code == 0, again
    tested, summary = (line.split()[2 if "test accuracy" in line else 1] for line in again.splitlines()[-2:])
    assert tested == summary
