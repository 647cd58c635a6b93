"""Hydra finds launchers in this namespace package only; the work is in ``bsq_lightning.cli.sweep.launch``."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class ProcessLauncher(Launcher):
    """Every point of a multirun in a process of its own, ``slots`` at a time, on this machine.

    Unlike submitit_local behind ``max_batch_size``, a slot that is free takes the next point at once (a batch waits
    for its slowest point), and a point that fails stops no other (there the batches behind it never start).

    Args:
        slots: points at a time; None takes one for each GPU, or one.
        threads: CPU threads of each point; None shares the cores.
    """

    #: Whether the points train on other hosts.
    elsewhere = False

    def __init__(self, slots: int | None = None, threads: int | None = None) -> None:
        self.slots, self.threads = slots, threads

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Runs the points; the exit status of the command is 1 if one failed, 75 if one was stopped or is trained by
        another process. A sweeper that learns is told of a failure as one of the point, and may go on."""
        from hydra.core.utils import configure_log

        from bsq_lightning.cli.config import quiet_lightning
        from bsq_lightning.cli.objective import objective
        from bsq_lightning.cli.sweep.launch import failure_of, launch_points, learns

        quiet_lightning()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        loader: Any = self.context.config_loader
        try:
            train = self.trainer()
            points = launch_points(
                self.config, loader, job_overrides, initial_job_idx, train, self.elsewhere, self.announce
            )
        except (ValueError, FileNotFoundError) as error:
            raise SystemExit(f"error: {error}") from None
        failed = 1 if any(status == 1 for _, status in points) else max((status for _, status in points), default=0)
        returns = []
        for point, status in points:
            result = JobReturn(overrides=point.overrides, cfg=point.cfg, working_dir=str(point.folder.path))
            result.status = JobStatus.FAILED if status else JobStatus.COMPLETED
            summary = point.folder.summary() if point.folder.is_finished else {}
            value = objective(point.cfg.get("objective"), summary)
            result.return_value = SystemExit(failed) if status else value
            if learns(self.config) and (failure := failure_of(point, status, self.config)):
                result.status, result.return_value = JobStatus.FAILED, failure
            returns.append(result)
        return returns

    def announce(self, points: list[Any]) -> None:
        """Shows what would be asked for elsewhere, after ``preflight=only``."""

    def trainer(self) -> Callable[[Any], None]:
        """What carries out the plan of the points."""
        from bsq_lightning.cli.sweep.launch import slots_of, train_here

        return partial(train_here, slots=slots_of(self.slots, self.threads, self.config.trainer.devices))
