"""Hydra finds launchers in this namespace package only; the work is in ``bsq_lightning.cli.sweep.slurm``."""

from collections.abc import Callable
from typing import Any

from hydra_plugins.bsq_processes import ProcessLauncher


class SlurmLauncher(ProcessLauncher):
    """Every point of a multirun as a job of a SLURM cluster; composed, checked and listed before it is submitted.

    The launcher of hydra-submitit-launcher composes a point inside its job only, raises at the first job that fails,
    and without SLURM's accounting waits for a cancelled one for ever.

    Args:
        **asked: submitit's names for what is asked of SLURM; read again from the config of each point.
    """

    elsewhere = True

    def __init__(self, **asked: Any) -> None:
        super().__init__()

    def announce(self, points: list[Any]) -> None:
        """Prints the files that submitit would send."""
        from bsq_lightning.cli.sweep.slurm import submission_files

        for text in submission_files(points):
            print(f"\nwhat sbatch would get:\n{text.rstrip()}")

    def trainer(self) -> Callable[[Any], None]:
        """What carries out the plan of the points."""
        try:
            from bsq_lightning.cli.sweep.slurm import train_on_cluster
        except ModuleNotFoundError as error:
            raise ValueError(f"{error}: pip install 'bsq_lightning[slurm]'") from None
        return train_on_cluster
