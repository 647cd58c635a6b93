"""Against a real slurmctld and slurmd: a sweep as an array, a cancelled job, two tasks, a time limit."""

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from bsq_lightning.cli.sweep.status import point_states
from bsq_lightning.run_folder import RunFolder, SweepFolder
from tests.cli.commands import TINY, run, start
from tests.cli.test_resume import same_run

pytestmark = pytest.mark.slurm

JOBS = ["-m", *[o for o in TINY if not o.startswith("reg.alpha")], "hydra/launcher=submitit_slurm",
        "hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=1", "hydra.launcher.mem_gb=1",
        "hydra.launcher.timeout_min=5"]  # fmt: skip


def slowly(seconds: float) -> list[str]:
    """A pause before each of the 28 steps."""
    return ["+callbacks.slowly._target_=tests.slurm.slowly.Slowly", f"+callbacks.slowly.seconds={seconds}"]


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout


def seen(folder: Path) -> str:
    """What to look at when a test fails: the queue, and what the jobs said."""
    logs = [f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(folder.glob(".submitit/*/*_log.*"))]
    return "\n".join([slurm("squeue", "--array"), *logs])


def wait_until(condition: Callable[[], bool], folder: Path, seconds: float = 90) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, seen(folder)
        time.sleep(0.2)


def ended(process: subprocess.Popen[str]) -> bool:
    """Whether it ended; lets jobs go that were queued again, which SLURM would hold for two minutes."""
    for line in slurm("squeue", "--noheader", "--states=PENDING", "--format=%i %r").splitlines():
        job, reason = line.split(maxsplit=1)
        if reason == "BeginTime":
            slurm("scontrol", "update", f"jobid={job}", "StartTime=now")
    return process.poll() is not None


def jobs(folder: Path) -> dict[str, str]:
    path = folder / "jobs.json"
    return json.loads(path.read_text()) if path.exists() else {}


def has_trained(folder: Path, row: str) -> bool:
    path = folder / "metrics.csv"
    return path.exists() and f"\n{row}," in path.read_text()


def test_a_sweep_is_an_array_and_its_float_stage_a_job_before_it(tmp_path: Path) -> None:
    command = [*JOBS, "reg.alpha=20,10,5", f"hydra.sweep.dir={tmp_path}"]
    code, output = run("train", *command)
    assert code == 0, output + seen(tmp_path)
    assert point_states(SweepFolder(tmp_path)) == dict.fromkeys(["reg.alpha=20", "reg.alpha=10", "reg.alpha=5"], "done")
    submitted = [job for name, job in jobs(tmp_path).items() if not name.startswith("float/")]
    array = submitted[0].partition("_")[0]
    assert submitted == [f"{array}_{i}" for i in range(3)]
    (stage,) = (tmp_path / "float").iterdir()
    for name in ("reg.alpha=20", "reg.alpha=5"):
        assert f"the float stage is that of {stage}" in (tmp_path / name / "train.log").read_text()
    # What is done is not submitted again.
    before = jobs(tmp_path)
    code, output = run("train", *command)
    assert code == 0 and "3 points, 0 to run" in output and jobs(tmp_path) == before, output


def test_a_bad_point_is_found_before_anything_is_submitted(tmp_path: Path) -> None:
    before = slurm("squeue", "--noheader", "--states=all", "--format=%A")
    for wrong, said in (("reg.alpha=20,-1", "reg.alpha=-1"), ("hydra.launcher.partition=absent", "invalid partition")):
        code, output = run("train", *JOBS, "seed=1,2", wrong, f"hydra.sweep.dir={tmp_path}")
        assert code == 1 and said in output and "Traceback" not in output, output
    assert slurm("squeue", "--noheader", "--states=all", "--format=%A") == before


def test_a_cancelled_job_stops_no_other_and_the_same_command_finishes_it(tmp_path: Path) -> None:
    command = [*JOBS, *slowly(0.3), "reg.alpha=20,10", f"hydra.sweep.dir={tmp_path}"]
    process = start("train", *command)
    cancelled = tmp_path / "reg.alpha=10"
    wait_until(lambda: has_trained(cancelled, "bits,0"), tmp_path)
    job = jobs(tmp_path)["reg.alpha=10"]
    slurm("scancel", job)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 1, output + seen(tmp_path)
    assert f"SLURM job {job} ended as CANCELLED" in output
    assert point_states(SweepFolder(tmp_path)) == {"reg.alpha=20": "done", "reg.alpha=10": "failed"}
    code, output = run("train", *command)
    assert code == 0 and "2 points, 1 to run" in output, output + seen(tmp_path)
    assert "bits continues" in (cancelled / "train.log").read_text()
    assert RunFolder(cancelled).state == "done" and jobs(tmp_path)["reg.alpha=10"] != job


def test_a_command_that_is_interrupted_leaves_the_jobs_and_finds_them_again(tmp_path: Path) -> None:
    command = [*JOBS, "reg.alpha=20,10", f"hydra.sweep.dir={tmp_path}"]
    process = start("train", *command)
    wait_until(lambda: len(jobs(tmp_path)) == 3, tmp_path)
    time.sleep(1)
    process.send_signal(2)
    output, _ = process.communicate(timeout=60)
    submitted = jobs(tmp_path)
    assert process.returncode == 130 and "the jobs go on without this command" in output, output
    code, output = run("train", *command)
    assert code == 0 and jobs(tmp_path) == submitted, output + seen(tmp_path)


def test_two_tasks_are_two_ranks_of_one_run_also_after_a_preemption(tmp_path: Path) -> None:
    one = tmp_path / "one"
    command = [*JOBS, *slowly(0.3), "trainer=ddp_cpu", "reg.alpha=20", f"hydra.sweep.dir={tmp_path}"]
    process = start("train", *command, "hydra.sweep.subdir=one")
    wait_until(lambda: has_trained(one, "bits,0"), tmp_path)
    (job,) = jobs(tmp_path).values()
    slurm("scancel", "--signal=USR2", job)
    wait_until(lambda: ended(process), tmp_path, seconds=120)
    output, _ = process.communicate()
    assert process.returncode == 0, output + seen(tmp_path)
    assert [folder.path.name for folder in SweepFolder(tmp_path).runs()] == ["one"]
    said = {path.name[-9]: path.read_text() for path in tmp_path.glob(".submitit/*/*_log.out")}
    assert said["0"].count("local_rank=0(2)") == said["1"].count("local_rank=1(2)") == 2, seen(tmp_path)
    assert " continues a" in (one / "train.log").read_text()
    assert RunFolder(one).summary()["devices"] == 2


def test_a_job_that_hits_its_time_limit_is_queued_again_and_ends_as_one_that_does_not(tmp_path: Path) -> None:
    whole, limited = tmp_path / "whole", tmp_path / "limited"
    command = [*JOBS, "reg.alpha=20", "hydra.sweep.subdir=one"]
    # The signal comes between the 15th and the 45th second, whenever slurmctld looks at the limits.
    limit = ["hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=15", *slowly(2)]
    process = start("train", *command, *limit, f"hydra.sweep.dir={limited}")
    code, output = run("train", *command, f"hydra.sweep.dir={whole}")
    assert code == 0, output + seen(whole)

    wait_until(lambda: ended(process), limited, seconds=160)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    (said,) = limited.glob(".submitit/*/*_log.out")
    assert "this job is timed-out" in (said.read_text() + said.with_suffix(".err").read_text()), seen(limited)
    assert " continues a" in (limited / "one" / "train.log").read_text()
    same_run(whole / "one", limited / "one")
    precisions = [layer["precision"] for layer in json.loads((whole / "one" / "scheme.json").read_text())["layers"]]
    assert len(set(precisions)) > 1, "the bits must have moved for this to say something"
