"""Points run a few at a time; a failure is recorded and stops no other. The processes here only sleep and write."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsq_lightning.cli.sweep.next_steps import next_steps
from bsq_lightning.cli.sweep.points import Slots, float_command, run_points, train_command
from bsq_lightning.cli.sweep.progress import Progress
from bsq_lightning.run_folder import RunFolder, SweepFolder

SUMMARY = json.dumps({"accuracy": {"final": {"test/acc": 0.5}}})


def writing(folder: Path, code: str = "") -> list[str]:
    """A command that notes when it ran, where and with what, and then writes a summary."""
    program = f"""
import os, pathlib, time
folder = pathlib.Path({str(folder)!r})
start = time.time()
time.sleep(0.4)
{code}
seen = [os.environ.get(k, "") for k in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "BSQ_SWEEP")]
(folder / "span").write_text(repr((start, time.time(), *seen)))
(folder / "summary.json").write_text({SUMMARY!r})
"""
    return [sys.executable, "-c", program]


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_never_more_at_once_than_slots_and_all_of_them(tmp_path: Path, slots: int) -> None:
    folders = [tmp_path / f"p{i}" for i in range(5)]
    ended = run_points({f: writing(f) for f in folders}, Slots(slots, 1), "mine")
    assert ended == dict.fromkeys(folders, True)
    spans = [eval((f / "span").read_text()) for f in folders]
    most = max(sum(a[0] <= b[0] < a[1] for a in spans) for b in spans)
    assert most == min(slots, most) and (slots == 1 or most > 1)
    assert {span[2:] for span in spans} == {("1", os.environ.get("CUDA_VISIBLE_DEVICES", ""), "mine")}


def test_gpus_and_threads_are_dealt_to_the_slots() -> None:
    four = Slots(gpus=("0", "1", "2", "3"))
    assert four.count == 4
    assert [four.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(4)] == ["0", "1", "2", "3"]
    two = Slots(2, gpus=("0", "1", "2", "3"))
    assert sorted(",".join(two.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(2)).split(",")) == list("0123")
    pairs = Slots(gpus=("0", "1", "2", "3"), devices=2)
    assert pairs.count == 2
    assert sorted(",".join(pairs.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(2)).split(",")) == list("0123")
    six = Slots(6, threads=3, gpus=("4", "5"))
    assert [six.environment(i)["CUDA_VISIBLE_DEVICES"] for i in range(6)] == ["4", "5"] * 3
    assert six.environment(0)["OMP_NUM_THREADS"] == "3"
    cores = len(os.sched_getaffinity(0))
    assert int(Slots(2).environment(0)["OMP_NUM_THREADS"]) == max(1, cores // 2)
    with pytest.raises(ValueError, match="positive"):
        Slots(0)


@pytest.mark.parametrize(
    ("code", "said"),
    [("raise ValueError('no such thing')", "no such thing"), ("os.kill(os.getpid(), 9)", "killed by signal 9")],
)
def test_a_failure_is_recorded_with_its_last_words_and_the_others_go_on(tmp_path: Path, code: str, said: str) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    ended = run_points({bad: writing(bad, code), good: writing(good)}, Slots(1), "s")
    assert ended == {bad: False, good: True}
    assert RunFolder(bad).state == "failed" and RunFolder(good).state == "done"
    error = RunFolder(bad).error()
    assert error is not None and said in error["message"]
    assert said in (bad / "output.log").read_text() or "signal" in said


def test_a_point_that_was_stopped_and_saved_is_not_a_failure(tmp_path: Path) -> None:
    stopped, good = tmp_path / "stopped", tmp_path / "good"
    command = writing(stopped, "raise SystemExit(128 + 10)")
    assert run_points({stopped: command, good: writing(good)}, Slots(1), "s") == {stopped: False, good: True}
    assert RunFolder(stopped).state == "unfinished" and RunFolder(stopped).error() is None


def test_a_run_of_another_process_is_no_failure_and_can_be_waited_for(tmp_path: Path) -> None:
    one, two = tmp_path / "left", tmp_path / "taken"
    in_use = "import sys; sys.exit(75)"
    assert run_points({one: [sys.executable, "-c", in_use]}, Slots(1), "s") == {one: False}
    assert RunFolder(one).error() is None
    # The first time it is in use, the second time not.
    first = two / "first"
    command = writing(
        two, f"if not pathlib.Path({str(first)!r}).exists():\n  open({str(first)!r}, 'w'); raise SystemExit(75)"
    )
    assert run_points({two: command}, Slots(1), "s", wait=True) == {two: True}
    assert first.exists()


def test_progress_counts_epochs_of_the_stages_that_are_trained(tmp_path: Path) -> None:
    shared, alone = RunFolder(tmp_path / "shared"), RunFolder(tmp_path / "alone")
    progress = Progress({shared.path: {"bits": 3}, alone.path: {"float": 2, "bits": 3}})
    progress.begin()
    assert progress.left() is None
    for folder in (shared, alone):
        folder.path.mkdir()
        folder.add_metrics({"stage": "float", "epoch": 0})
        folder.add_metrics({"stage": "bits", "epoch": 0})
    started = time.monotonic()
    time.sleep(0.3)
    progress.update([shared.path, alone.path])
    left = progress.left()
    assert left is not None and 0.3 * 5 / 3 <= left <= (time.monotonic() - started + 0.1) * 5 / 3  # 3 epochs of 8 done
    progress.ended(alone.path)
    assert progress.left() == pytest.approx(0.4 / 6 * 2, abs=0.2)


def test_an_error_that_the_run_recorded_itself_is_kept(tmp_path: Path) -> None:
    bad = tmp_path / "bad"
    code = '(folder / \'error.json\').write_text(\'{"type": "E", "message": "its own"}\'); raise SystemExit(1)'
    assert run_points({bad: writing(bad, code)}, Slots(1), "s") == {bad: False}
    assert RunFolder(bad).error() == {"type": "E", "message": "its own"}


def test_a_watch_stops_a_run_without_calling_it_a_failure(tmp_path: Path) -> None:
    slow, quick = tmp_path / "slow", tmp_path / "quick"
    commands = {slow: writing(slow, "time.sleep(60)"), quick: writing(quick)}
    started = time.monotonic()
    ended = run_points(commands, Slots(2), "s", lambda folder: "too slow" if folder.path == slow else None)
    assert time.monotonic() - started < 30
    assert ended == {slow: True, quick: True}
    assert RunFolder(slow).state == "unfinished"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_stopping_the_parent_ends_its_children(tmp_path: Path, signum: signal.Signals) -> None:
    folder = tmp_path / "p"
    command = writing(folder, "(folder / 'pid').write_text(str(os.getpid())); time.sleep(60)")
    program = f"""
from pathlib import Path
from bsq_lightning.cli.sweep.next_steps import next_steps
from bsq_lightning.cli.sweep.points import Slots, run_points
run_points({{Path({str(folder)!r}): {command!r}}}, Slots(1), "s")
"""
    # What a script has put into the background ignores Ctrl-C, and so would what it starts.
    parent = subprocess.Popen(
        [sys.executable, "-c", program], stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    parent.send_signal(signum)
    _, errors = parent.communicate(timeout=30)
    assert parent.returncode == 128 + signum and "Traceback" not in errors
    with pytest.raises(ProcessLookupError):
        os.kill(int((folder / "pid").read_text()), 0)


def test_a_float_stage_that_was_begun_for_other_points_is_resumed(tmp_path: Path) -> None:
    assert float_command(tmp_path, ["reg.alpha=1"])[3:5] == ["reg.alpha=1", "until=float"]
    (tmp_path / "config.yaml").touch()
    assert float_command(tmp_path, ["reg.alpha=2"])[3:] == [f"resume={tmp_path}", "until=float", "logger=none"]


def test_the_command_survives_strange_folder_names() -> None:
    command = train_command(Path("/a b/it's,x=1"), ["seed=1"])
    assert command[-2:] == ["hydra.run.dir='/a b/it\\'s,x=1'", "hydra.mode=RUN"]


def test_what_is_next_is_what_there_is_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py", "-m", "seed=1,2"])
    folder = tmp_path / "a b"
    sweep = SweepFolder(folder)
    sweep.add_points({"seed=1": ["seed=1"], "seed=2": ["seed=2"]})
    steps = next_steps(sweep)
    assert list(steps) == ["go on", "status"]
    assert shlex.split(steps["go on"])[3:] == ["-m", "seed=1,2", f"hydra.sweep.dir='{folder}'"]
    for name in ("seed=1", "seed=2"):
        RunFolder(folder / name).finish({})
        (folder / name / "config.yaml").touch()
    (folder / "seed=1" / "wandb" / "offline-run-1").mkdir(parents=True)
    (folder / "seed=1" / "wandb" / "latest-run").symlink_to("offline-run-1")
    steps = next_steps(sweep)
    assert list(steps) == ["report", "upload to W&B"]
    assert shlex.split(steps["report"])[-1] == str(folder)
    listed = subprocess.run(steps["upload to W&B"].partition(" | xargs")[0], shell=True, capture_output=True, text=True)
    assert listed.stdout.split("\n")[:-1] == [str(folder / "seed=1" / "wandb" / "offline-run-1")]
