"""What the launcher plans for points that ended in some way, and what it tells a sweeper of them."""

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from bsq_lightning.cli.sweep import launch
from bsq_lightning.cli.sweep.launch import Point
from bsq_lightning.cli.sweep.points import Slots, run_points
from bsq_lightning.run_folder import InUseError, RunFolder, SweepFolder
from hydra_plugins.bsq_processes import ProcessLauncher
from tests.cli.test_points import writing
from tests.test_conf import composed

#: How a point ends, and the exit status that it gives to its sweep.
ENDINGS = {
    "": 0,
    "raise SystemExit(75)": 75,  # another process trains it
    "raise SystemExit(128 + 15)": 75,  # preempted
    "raise SystemExit(128 + 2)": 75,  # Ctrl-C
    "os.kill(os.getpid(), 9)": 1,  # out of memory
    "raise SystemExit(137)": 1,  # the same, in a container or under a shell
    "raise OSError(28, 'No space left on device')": 1,
}
NO_LOADER: Any = type("Context", (), {"config_loader": None})
BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
LEARNING = "hydra_plugins.hydra_optuna_sweeper.optuna_sweeper.OptunaSweeper"


@pytest.fixture
def ended(tmp_path: Path) -> dict[str, Point]:
    """Points that ended in each of these ways, by it."""
    cfg = composed("experiment=quickstart")
    points = {end: Point(cfg, RunFolder(tmp_path / f"p{i}"), [f"seed={i}"], {}) for i, end in enumerate(ENDINGS)}
    run_points({point.folder.path: writing(point.folder.path, end) for end, point in points.items()}, Slots(7), "s")
    return points


def test_the_same_command_takes_up_whatever_did_not_come_to_its_end(ended: dict[str, Point], tmp_path: Path) -> None:
    plan = launch._plan([*ended.values()], SweepFolder(tmp_path), [], share=False)
    assert set(plan.commands) == {point.folder.path for end, point in ended.items() if end}
    with ExitStack() as others:
        for point in ended.values():
            others.enter_context(point.folder.running())
        assert not launch._plan([*ended.values()], SweepFolder(tmp_path), [], share=False).commands
    again = {path: writing(path) for path in plan.commands}
    assert all(run_points(again, Slots(7), "s").values())
    assert {point.folder.state for point in ended.values()} == {"done"}


def test_an_earlier_failure_does_not_explain_a_later_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "p")
    folder.path.mkdir()
    folder.record_error("the disk was full")
    run_points({folder.path: writing(folder.path, "raise SystemExit(143)")}, Slots(1), "s")
    assert folder.state == "unfinished"
    folder.output_log.write_text("words of an earlier start\n")
    run_points({folder.path: writing(folder.path, "os.kill(os.getpid(), 9)")}, Slots(1), "s")
    assert (folder.error() or {})["message"] == "killed by signal 9; it last said: nothing"


def test_a_trial_of_a_study_shares_its_float_stage_with_those_to_come(ended: dict[str, Point], tmp_path: Path) -> None:
    alone = [next(point for end, point in ended.items() if end)]
    assert not launch._plan(alone, SweepFolder(tmp_path), [], share=False).floats
    shared = launch._plan(alone, SweepFolder(tmp_path), [], share=True)
    assert len(shared.floats) == 1 and set(shared.uses.values()) == set(shared.floats)


@pytest.mark.parametrize("stopped", [True, False])
def test_points_whose_float_stage_was_stopped_have_not_failed(tmp_path: Path, stopped: bool) -> None:
    cfg = composed("experiment=quickstart")
    point = Point(cfg, RunFolder(tmp_path / "p"), [], {})
    plan = launch._plan([point], SweepFolder(tmp_path), [], share=True)
    (path,) = plan.floats
    plan.floats[path] = writing(path, f"raise SystemExit({143 if stopped else 1})")
    launch.train_here(plan, Slots(1))
    assert launch._exit_status(point) == (75 if stopped else 1)
    assert (point.folder.error() is None) == stopped


@pytest.mark.parametrize("sweeper", [BASIC, LEARNING])
def test_a_sweeper_that_learns_hears_of_failures_as_those_of_points(
    ended: dict[str, Point], monkeypatch: pytest.MonkeyPatch, sweeper: str
) -> None:
    found = [(point, launch._exit_status(point)) for point in ended.values()]
    assert [status for _, status in found] == list(ENDINGS.values())
    for rate in (0.0, 1.0):
        kind = {"_target_": sweeper, "max_failure_rate": rate}
        hydra = {"hydra_logging": None, "verbose": False, "sweeper": kind}
        config: Any = OmegaConf.create({"trainer": {"devices": 1}, "hydra": hydra})
        launcher = ProcessLauncher()
        launcher.config, launcher.context = config, NO_LOADER
        monkeypatch.setattr(launch, "launch_points", lambda *_: found)
        monkeypatch.setattr("hydra.core.utils.configure_log", lambda *_: None)
        for (point, status), result in zip(found, launcher.launch([], 0), strict=True):
            if not status:
                assert result.return_value is None  # the summary here holds no objective
                continue
            with pytest.raises(ChildProcessError if status == 1 and sweeper == LEARNING else SystemExit) as caught:
                assert result.return_value
            if isinstance(caught.value, ChildProcessError):
                assert f"{point.folder.path.name} failed: " in str(caught.value)
                assert ("max_failure_rate=1 lets" in str(caught.value)) == (rate == 0)


@pytest.mark.parametrize(("accuracy", "sweeper", "told"), [
    (0.11, LEARNING, "p is at chance: 11.00 % of 360 test images"), (0.11, BASIC, ""), (0.5, LEARNING, ""),
])  # fmt: skip
def test_a_study_is_not_told_of_the_size_of_a_network_that_guesses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accuracy: float, sweeper: str, told: str
) -> None:
    point = Point(composed("objective=[sizes.model.bits]"), RunFolder(tmp_path / "p"), [], {})
    data = {"test": 360, "classes": 10}
    point.folder.finish({"accuracy": {"final": {"test/acc": accuracy}}, "data": data, "sizes": {"model": {"bits": 8}}})
    launcher = ProcessLauncher()
    hydra = {"hydra_logging": None, "verbose": False, "sweeper": {"_target_": sweeper}}
    config: Any = OmegaConf.create({"trainer": {"devices": 1}, "hydra": hydra})
    launcher.config, launcher.context = config, NO_LOADER
    monkeypatch.setattr(launch, "launch_points", lambda *_: [(point, 0)])
    monkeypatch.setattr("hydra.core.utils.configure_log", lambda *_: None)
    (result,) = launcher.launch([], 0)
    if not told:
        assert result.return_value == 8
        return
    with pytest.raises(ChildProcessError, match=told):
        assert result.return_value


def test_two_searches_do_not_run_in_one_folder(tmp_path: Path) -> None:
    first, second = SweepFolder(tmp_path), SweepFolder(tmp_path)
    with first.searching():
        with pytest.raises(InUseError, match="another search is under way in it") as caught, second.searching():
            pass
        assert caught.value.exit_status == 75
    with second.searching():
        pass
