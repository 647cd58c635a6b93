"""What every command does with its command line, before Hydra sees it."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from bsq_lightning.cli.config import quote_paths


@pytest.mark.parametrize("name", ["plain", "model=resnet20,reg.alpha=1e-3,seed=1", "it's (here), yes", "a b"])
def test_a_folder_that_is_there_needs_no_quotes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (argument,) = quote_paths([f"run={tmp_path / name}"])
    (override,) = OverridesParser.create().parse_overrides([argument])
    assert override.value() == str(tmp_path / name)


@pytest.mark.parametrize("argument", ["reg.alpha=1e-3,2e-3", "-m", "run='/quoted'", "runs=[/a,/b]", "stages=short"])
def test_everything_else_is_left_alone(argument: str) -> None:
    assert quote_paths([argument]) == [argument]
