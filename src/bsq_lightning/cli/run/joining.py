"""Being one of several processes of a run: joining the others, one run folder for all, and saying it when one is lost.

The processes are started by ``cli/run/processes.py``, by torchrun, or by SLURM's srun (submitit does that).
"""

import logging
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from omegaconf import DictConfig

from bsq_lightning.cli.terminal import Terminal

log = logging.getLogger(__name__)
_LOST = re.compile("gloo|NCCL|Connection (closed|reset)|pair closure|TCPStore|[Tt]imed? ?out")


class PeerLostError(ConnectionError):
    """Another process of the run ended, or its host cannot be reached."""


@contextmanager
def joined(cfg: DictConfig) -> Iterator[int]:
    """Joins the other processes of this run, if there are any; yields the own rank and leaves them at the end.

    Raises:
        PeerLostError: another process ended; what it failed with is in its own output and in ``error.json``.
    """
    from bsq_lightning.cli.building.trainers import build_test_trainer, device_count

    if device_count(cfg) == 1:
        yield 0
        return
    import torch.distributed as dist
    from lightning.pytorch.strategies import ParallelStrategy

    strategy = build_test_trainer(cfg).strategy
    assert isinstance(strategy, ParallelStrategy)
    try:
        strategy.setup_environment()
        if strategy.global_rank:
            _speak_as(strategy.global_rank)
        yield strategy.global_rank
        dist.barrier()  # the first to go would take the connections of the others with it
    except RuntimeError as error:
        text = str(error)
        if isinstance(error, dist.DistError) or _LOST.search(text):
            raise PeerLostError(
                f"lost another process of this run: it ended, or its host cannot be reached "
                f"({re.sub('^.*?[.]cc:[0-9]+] ', '', text.splitlines()[0])[:120]})"
            ) from error
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _speak_as(rank: int) -> None:
    """Ranks above 0 say errors only, with their number; what they do is what rank 0 says it does."""
    root = logging.getLogger()
    handler = Terminal()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname).1s [rank {rank}] %(message)s", "%H:%M:%S"))
    root.handlers = [handler]
    root.setLevel(logging.ERROR)


def started_ranks() -> int:
    """Processes that torchrun or srun started, this one among them; 1 where none did."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # as Lightning tells them apart
    return int(os.environ["SLURM_NTASKS"]) if "SLURM_PROCID" in os.environ and not interactive else 1


def one_run_folder(arguments: list[str]) -> list[str]:
    """Where torchrun or srun started several of this command, makes them agree on ``hydra.run.dir``.

    Each would resolve the time of its start otherwise. Under torchrun the ranks ask rank 0, under SLURM the number of
    the job is the name, so that a job that is queued again goes on in its folder.

    Raises:
        ValueError: a multirun, which every process would run.

    Example:
        >>> one_run_folder(["seed=1"])  # a process alone
        ['seed=1']
    """
    if started_ranks() == 1:
        return arguments
    torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if {"-m", "--multirun"} & set(arguments):
        raise ValueError(
            "every process of torchrun or srun would run the whole sweep: start the sweep by itself, with "
            "trainer.devices=N, or hydra/launcher=submitit_slurm on a cluster"
        )
    rank = int(os.environ["RANK"] if torchrun else os.environ["SLURM_PROCID"])
    if not any(argument.startswith("hydra.run.dir=") for argument in arguments):
        name = _name_from_rank_zero(rank) if torchrun else f"slurm-{os.environ['SLURM_JOB_ID']}"
        arguments = [*arguments, f"hydra.run.dir=outputs/{name}"]
    return arguments if rank == 0 else [*arguments, "hydra.output_subdir=null"]


def _name_from_rank_zero(rank: int) -> str:
    from torch.distributed import TCPStore  # pyright: ignore[reportPrivateImportUsage]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=60))
    if rank == 0:
        store.set("bsq_run_folder", time.strftime("%Y-%m-%d/%H-%M-%S-") + os.environ["TORCHELASTIC_RUN_ID"])
    return store.get("bsq_run_folder").decode()
