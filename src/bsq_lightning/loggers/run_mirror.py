"""What a logger needs to follow a run of several stages."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers.logger import Logger


def end_of_stage(result: Mapping[str, Any]) -> dict[str, float]:
    """What is shown of a stage's result in ``stages.json``."""
    return {f"end/{key}": value for key, value in result.items() if isinstance(value, float)}


class RunMirror(Logger):
    """A logger of a whole run: mix it in before a logger of Lightning's.

    A run has one Trainer for each stage, which counts its steps from 0; here the axis goes on. Everything shown is in
    the run folder as well, and nothing is read back from here.
    """

    steps_before = 0

    def begin(self, config: dict[str, Any]) -> None:
        """Connects, before the first epoch. ``config`` is the settled config."""

    def begin_stage(self, steps_before: int) -> None:
        """``steps_before`` are the optimizer steps of the stages before this one."""
        self.steps_before = steps_before

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        super().log_metrics(dict(metrics), None if step is None else step + self.steps_before)

    def log_summary(self, summary: dict[str, Any]) -> None:
        """The run is finished, and this is its ``summary.json``."""

    def close(self, exit_code: int) -> None:
        """The run ended: 0 for finished, 1 for an error or an interrupt."""
