"""Which loggers a command builds and how they are exchanged; nothing is trained."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.cli.run.mirrors import build_loggers, mirrored
from bsq_lightning.cli.run.resume import resume_arguments
from bsq_lightning.loggers.tensorboard_mirror import TensorBoardMirror
from bsq_lightning.loggers.wandb_mirror import WandbMirror
from bsq_lightning.run_folder import RunFolder, SweepFolder
from bsq_lightning.train import main
from tests.cli.commands import TINY
from tests.test_conf import composed


def test_wandb_is_the_default_and_the_alternatives_exclude_it() -> None:
    assert list(composed().logger) == ["wandb"]
    assert not composed("logger=none").logger
    assert list(composed("logger=tensorboard").logger) == ["tensorboard"]
    assert list(composed("logger=[wandb,tensorboard]").logger) == ["wandb", "tensorboard"]


def test_group_is_the_sweep_unless_another_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def group(*overrides: str) -> str | None:
        (logger,) = build_loggers(composed(*overrides), RunFolder(tmp_path))
        assert isinstance(logger, WandbMirror)
        return logger.arguments["group"]

    monkeypatch.delenv("BSQ_SWEEP", raising=False)
    assert group() is None
    monkeypatch.setenv("BSQ_SWEEP", "alphas")
    assert group() == "alphas"
    assert group("logger.wandb.group=mine") == "mine"


@pytest.mark.parametrize(
    "overrides, name",
    [
        (["reg.alpha=0.001"], "resnet20-cifar10-bit_planes-alpha=0.001-seed=1"),
        (["quant=uniform", "quant.precision=2", "seed=3"], "resnet20-cifar10-uniform-precision=2-seed=3"),
        (["quant=none", "reg=none", "data=digits"], "resnet20-digits-float-seed=1"),
        (["model=timm", "model.model_name=resnet10t", "reg.alpha=1"], "resnet10t-cifar10-bit_planes-alpha=1-seed=1"),
    ],
)
def test_a_run_is_called_by_what_it_is(
    overrides: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BSQ_SWEEP", raising=False)
    (logger,) = build_loggers(composed(*overrides), RunFolder(tmp_path))
    assert isinstance(logger, WandbMirror)
    assert logger.arguments["name"] == name
    assert logger.arguments["tags"] == name.split("-")[:3]
    (own,) = build_loggers(composed("logger.wandb.name=mine", "logger.wandb.tags=[a]"), RunFolder(tmp_path))
    assert isinstance(own, WandbMirror)
    assert (own.arguments["name"], own.arguments["tags"]) == ("mine", ["a"])
    # In a sweep the folder's name says what its points do not have in common.
    monkeypatch.setenv("BSQ_SWEEP", "alphas")
    (point,) = build_loggers(composed(), RunFolder(tmp_path / "reg.alpha=1"))
    assert isinstance(point, WandbMirror) and point.arguments["name"] == "reg.alpha=1"


def test_loggers_are_closed_with_the_state_the_run_ended_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr(WandbMirror, "begin", lambda self, config: None)
    monkeypatch.setattr(WandbMirror, "close", lambda self, exit_code: codes.append(exit_code))
    with mirrored(composed(), RunFolder(tmp_path)):
        pass
    for error in (ValueError, KeyboardInterrupt, SystemExit):
        with pytest.raises(error), mirrored(composed(), RunFolder(tmp_path)):
            raise error
    assert codes == [0, 1, 1, 1]


def test_preflight_starts_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(WandbMirror, "begin", lambda self, config: pytest.fail("a run was started"))
    monkeypatch.setattr("sys.argv", ["train", *TINY, "logger=wandb", "preflight=only", "hydra.run.dir=run"])
    main()
    assert not (tmp_path / "run" / "wandb").exists()


def test_tensorboard_is_missed_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = ("tensorboard", "tensorboardX")
    monkeypatch.setattr(
        "bsq_lightning.loggers.tensorboard_mirror.find_spec", lambda n: None if n in hidden else find_spec(n)
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *TINY, "logger=tensorboard", "hydra.run.dir=run"])
    with pytest.raises(SystemExit):
        main()
    assert "pip install tensorboard" in capsys.readouterr().out


def test_tensorboards_steps_go_on_after_a_stage(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    (logger,) = build_loggers(composed("logger=tensorboard"), RunFolder(tmp_path))
    assert isinstance(logger, TensorBoardMirror)
    for before in (0, 100):
        logger.begin_stage(before)
        logger.log_metrics({"train/loss": 1.0}, 3)
        logger.finalize("success")
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [3, 103]


@pytest.mark.parametrize(
    ("kept", "asked", "found"),
    [
        ("wandb", "none", []),
        ("wandb", "tensorboard", ["tensorboard"]),
        ("wandb", "wandb", ["wandb"]),
        ("none", "wandb", ["wandb"]),
        ("[wandb,tensorboard]", "wandb", ["wandb"]),
        ("wandb", "[wandb,tensorboard]", ["tensorboard", "wandb"]),
    ],
)
def test_resume_exchanges_the_logger(kept: str, asked: str, found: list[str], tmp_path: Path) -> None:
    OmegaConf.save(composed(f"logger={kept}"), tmp_path / "config.yaml", resolve=True)
    arguments = resume_arguments([f"resume={tmp_path}", f"logger={asked}"])
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        overrides = [a for a in arguments if "logger" in a and not a.startswith("hydra")]
        cfg = compose("config", overrides=[*overrides, f"hydra.searchpath=[file://{CONF_DIR}]"])
    assert sorted(cfg.logger or {}) == found


def test_resume_keeps_what_a_loggers_settings_may_be(tmp_path: Path) -> None:
    OmegaConf.save(composed(), tmp_path / "config.yaml", resolve=True)
    assert "logger.wandb.group=x" in resume_arguments([f"resume={tmp_path}", "logger.wandb.group=x"])


def test_wandbs_own_config_is_no_run_folder(tmp_path: Path) -> None:
    for folder in ("a", "b", "a/wandb/run-20261123_120000-abc/files"):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "config.yaml").touch()
    assert [run.path.name for run in SweepFolder(tmp_path).runs()] == ["a", "b"]


def test_wandb_is_imported_only_by_its_logger() -> None:
    code = "import sys, bsq_lightning.cli.run.stages, bsq_lightning.cli.run.mirrors; assert 'wandb' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
