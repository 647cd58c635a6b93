"""What every command does with its command line, before Hydra sees it."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bsq_lightning.cli.config import quote_paths
from bsq_lightning.train import main
from tests.cli.commands import in_process


@pytest.mark.parametrize("name", ["plain", "model=resnet20,reg.alpha=1e-3,seed=1", "it's (here), yes", "a b"])
def test_a_folder_that_is_there_needs_no_quotes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (argument,) = quote_paths([f"run={tmp_path / name}"])
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == str(tmp_path / name)


@pytest.mark.parametrize("argument", ["reg.alpha=1e-3,2e-3", "-m", "run='/quoted'", "runs=[/a,/b]", "stages=short"])
def test_everything_else_is_left_alone(argument: str) -> None:
    assert quote_paths([argument]) == [argument]


@pytest.mark.parametrize("place", range(3))
def test_an_option_may_stand_anywhere(
    place: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["experiment=quickstart", "seed=7"]
    arguments[place:place] = ["--cfg", "job"]
    code, output = in_process(main, monkeypatch, capsys)(*arguments)
    assert code == 0 and "seed: 7" in output.splitlines(), output


def test_an_option_that_nobody_knows_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, output = in_process(main, monkeypatch, capsys)("seed=7", "--multirum", "model=resnet20")
    assert code == 2 and "--multirum" in output, output
