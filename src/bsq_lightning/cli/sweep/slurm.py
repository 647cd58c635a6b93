"""Points of a sweep as jobs of a SLURM cluster, through submitit; the run folders hold all results.

A job runs the command that a process of this machine would run. The list of jobs, ``SWEEP/jobs.json``, lets the same
command find those that still wait or run, so that no point is submitted twice.
"""

import importlib
import json
import logging
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from submitit import AutoExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import DelayedSubmission

from bsq_lightning.cli.sweep.launch import Plan, Point
from bsq_lightning.files import read_json, write_whole
from bsq_lightning.run_folder import RunFolder, SweepFolder

log = logging.getLogger(__name__)

#: Seconds between two looks at the queue.
INTERVAL = 5


class Command:
    """A command of ours inside a job. A job that is queued again starts the same command, which resumes.

    Args:
        command: the command, as ``train_command`` makes it.
        group: name of the sweep; the commands find it in ``BSQ_SWEEP``.
    """

    def __init__(self, command: Sequence[str], group: str) -> None:
        (_, _, self.module, *self.arguments), self.group = command, group

    def __call__(self) -> None:
        # In this very process: submitit's handler of the signal before the time limit is here, and sees it end.
        os.environ["BSQ_SWEEP"] = self.group
        if os.environ.get("SLURM_CPUS_PER_TASK"):
            os.environ["OMP_NUM_THREADS"] = os.environ["SLURM_CPUS_PER_TASK"]
        sys.argv = [self.module, *self.arguments]
        importlib.import_module(self.module).main()

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again after the signal before the time limit."""
        return DelayedSubmission(self)


def train_on_cluster(plan: Plan) -> None:
    """Submits what is not in the queue yet and waits until the queue holds nothing of the plan.

    Points that ask for the same resources are one array. A float stage for several points is a job of its own, and
    they wait for it in the queue. When this process is interrupted, the jobs go on.

    Raises:
        ValueError: the resources are not what SLURM can be asked for, or it refuses them.
    """
    known = jobs_of(plan.sweep)
    queue = queued()
    jobs = {path: job for path, job in known.items() if job in queue}
    launchers = {point.folder.path: resources(point) for point in plan.points}
    launchers |= {float_folder: launchers[path] for path, float_folder in plan.uses.items()}
    log.info("%s; %d in the queue already", plan, len(jobs.keys() & (plan.floats.keys() | plan.commands.keys())))
    for commands in (plan.floats, plan.commands):
        arrays: dict[str, list[Path]] = {}
        for path in commands:
            if path not in jobs:
                # After any end: a point without its float stage says so itself, instead of waiting for ever.
                first = jobs.get(plan.uses[path]) if path in plan.uses else None
                asked = launchers[path] | ({"dependency": f"afterany:{first}"} if first else {})
                arrays.setdefault(json.dumps(asked, sort_keys=True), []).append(path)
        for asked, paths in arrays.items():
            new = _submit(json.loads(asked), [Command(commands[p], plan.sweep.path.name) for p in paths])
            jobs |= dict(zip(paths, new, strict=True))
            known |= jobs
            listed = {str(path.relative_to(plan.sweep.path)): job for path, job in known.items()}
            write_whole(plan.sweep.path / "jobs.json", json.dumps(listed, indent=1))
    mine = {path: jobs[path] for path in launchers if path in jobs}
    try:
        _wait(mine)
    except KeyboardInterrupt:
        ids = sorted({job.partition("_")[0] for job in mine.values()})
        log.warning(
            "the jobs go on without this command: bsq-sweep status %s shows them, scancel %s ends them, "
            "and the same command waits for them again",
            plan.sweep.path, " ".join(ids),
        )  # fmt: skip
        raise SystemExit(130) from None


def submission_files(points: Sequence[Point]) -> list[str]:
    """The files that submitit would send for these points, one for each array of jobs; nothing is sent.

    Raises:
        ValueError: submitit finds no SLURM here.
    """
    arrays: dict[str, list[Path]] = {}
    for point in points:
        arrays.setdefault(json.dumps(resources(point), sort_keys=True), []).append(point.folder.path)
    texts = []
    for asked, paths in arrays.items():
        try:
            executor = _executor(json.loads(asked))._executor
        except RuntimeError as error:
            raise ValueError(f"the points are fine; what sbatch would get is shown on a login node: {error}") from None
        executor.parameters["map_count"] = len(paths)  # submitit's own, without which it is not an array
        texts.append(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))  # pyright: ignore
    return texts


def jobs_of(sweep: SweepFolder) -> dict[Path, str]:
    """The newest job of each run folder that ever had one."""
    path = sweep.path / "jobs.json"
    return {sweep.path / name: job for name, job in read_json(path).items()} if path.exists() else {}


def queued() -> set[str]:
    """Ids of the user's jobs that wait or run.

    Raises:
        ValueError: SLURM does not answer, or is not there.
    """
    try:
        asked = subprocess.run(
            ["squeue", "--me", "--noheader", "--array", "--format=%i"], capture_output=True, text=True, timeout=60
        )
    except (FileNotFoundError, subprocess.TimeoutExpired) as error:
        raise ValueError(
            f"no SLURM here, squeue cannot be asked ({error}): start this on a login node of the cluster, "
            "or drop hydra/launcher=submitit_slurm"
        ) from None
    if asked.returncode:
        raise ValueError(f"SLURM does not answer: squeue says {asked.stderr.strip()!r}")
    # A job without an array has a plain number.
    return set(asked.stdout.split())


def resources(point: Point) -> dict[str, Any]:
    """What SLURM is asked for; values that are null are left to the cluster."""
    asked = {key: value for key, value in point.launcher.items() if key != "_target_" and value is not None}
    for key, source in (("nodes", "trainer.num_nodes"), ("tasks_per_node", "trainer.devices")):
        if not isinstance(asked.get(key), int) or asked[key] < 1:
            raise ValueError(
                f"hydra.launcher.{key}={asked.get(key)}, which is {source} unless it is set: SLURM needs a number"
            )
    if "cpus_per_task" in asked:
        # Since 22.05 srun does not take this from the job, and every task would have one core.
        asked["srun_args"] = [*asked.get("srun_args", ()), f"--cpus-per-task={asked['cpus_per_task']}"]
    return asked


def _executor(asked: dict[str, Any]) -> AutoExecutor:
    folder, requeues = asked.pop("submitit_folder"), asked.pop("max_num_timeout")
    executor = AutoExecutor(folder, cluster="slurm", slurm_max_num_timeout=requeues)
    executor.update_parameters(**{f"slurm_{key}": value for key, value in asked.items()})
    return executor


def _submit(asked: dict[str, Any], commands: list[Command]) -> list[str]:
    try:
        jobs = [job.job_id for job in _executor(asked).submit_array(commands)]
    except (FailedJobError, FailedSubmissionError, NameError) as error:
        raise ValueError(f"SLURM refuses the job, see hydra.launcher: {error}") from None
    log.info("%d jobs submitted: %s", len(jobs), " ".join(jobs))
    return jobs


def _wait(jobs: dict[Path, str]) -> None:
    waiting = dict(jobs)
    while waiting:
        time.sleep(INTERVAL)
        try:
            queue = queued()
        except ValueError as problem:
            log.warning("%s; the jobs go on, asking again", problem)
            continue
        for path, job in list(waiting.items()):
            if job not in queue:
                del waiting[path]
                _report(RunFolder(path), job)


def _report(folder: RunFolder, job: str) -> None:
    ending = _ending(job)
    if folder.state == "unfinished" and ending not in ("COMPLETED", "GONE"):
        # Nothing else says so: the process was killed, or never started.
        folder.record_error(f"SLURM job {job} ended as {ending}; the same command submits it again, and it goes on")
    said = f"; the run failed: {(folder.error() or {}).get('message')}" if folder.state == "failed" else ""
    log.log(logging.ERROR if said else logging.INFO, "%s: job %s is %s%s", folder.path.name, job, ending, said)


def _ending(job: str) -> str:
    shown = subprocess.run(["scontrol", "show", "job", "--oneliner", job], capture_output=True, text=True)
    found = re.search(r"\bJobState=(\w+)", shown.stdout)
    # SLURM forgets a job minutes after its end.
    return found[1] if found else "GONE"
