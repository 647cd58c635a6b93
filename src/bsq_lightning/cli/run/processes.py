"""A run on several devices: torch's elastic agent starts one process for each and ends them all when one fails.

Lightning would start the other ranks itself, by repeating the command line of this process. Under Hydra that repeats
whole sweeps, with run folders of their own, and leaves this process in a process group that the next job of the sweep
inherits. So no Trainer trains here: the ranks get the composed config in a file, and this process only waits.
"""

import logging
import os
import shlex
import signal
import sys
import tempfile
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bsq_lightning.callbacks import Preempted
from bsq_lightning.cli.building.checks import check_settings
from bsq_lightning.cli.building.machine import available_cores
from bsq_lightning.cli.building.trainers import check_processes, device_count
from bsq_lightning.cli.config import USER_ERRORS, quiet_lightning
from bsq_lightning.cli.run.joining import started_ranks
from bsq_lightning.cli.run.one_run import run
from bsq_lightning.cli.run.stopping import STOPPED, heard
from bsq_lightning.cli.trust import own_packages
from bsq_lightning.files import FULL
from bsq_lightning.run_folder import RunFolder

log = logging.getLogger(__name__)
#: What ends the ranks when it is sent to the command that started them.
_SIGNALS = (*STOPPED.values(), signal.SIGHUP, signal.SIGQUIT)
#: Seconds that the ranks have for saving, from the signal that stops them to SIGKILL.
GRACE = 60


class RankFailedError(ChildProcessError):
    """A rank of the run failed; the message says which one and how."""


def starts_ranks(cfg: DictConfig) -> bool:
    """Whether this process has to start the ranks: there are several, and torchrun or SLURM have not done it.

    Raises:
        ValueError: they have started another number than the config asks for, or this host has too few cores.
    """
    wanted, started = device_count(cfg), started_ranks()
    if started not in (1, wanted):
        raise ValueError(
            f"{started} processes were started (by torchrun or srun), but trainer.devices x trainer.num_nodes is "
            f"{wanted}: they must agree"
        )
    if started < wanted:
        check_processes(cfg)
    return started < wanted


def run_ranks(cfg: DictConfig, folder: RunFolder) -> None:
    """Starts the ranks of this host and waits for them. All hosts do this (``NODE_RANK``, ``MASTER_ADDR``).

    Raises:
        ValueError: several hosts, and it is not said which of them this is.
        RankFailedError: a rank failed; the others were ended.
        Preempted: the ranks were asked to stop, and did, with a checkpoint.
    """
    from torch.distributed.elastic.multiprocessing import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch

    hosts = int(cfg.trainer.num_nodes)
    devices = device_count(cfg) // hosts
    # It reports in boxes of stars what is said in one line below.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, available_cores() // devices)))
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    log.info("starting %d processes%s", devices, f" on this host, {devices * hosts} in all" if hosts > 1 else "")
    with tempfile.TemporaryDirectory() as temporary:
        order = Path(temporary) / "run.yaml"
        content = {"cfg": cfg, "logging": HydraConfig.get().job_logging}
        content = {key: OmegaConf.to_container(value, resolve=True) for key, value in content.items()}
        OmegaConf.save(OmegaConf.create({**content, "folder": str(folder.path)}), order)
        try:
            elastic_launch(_launch_config(hosts, devices), sys.executable)("-m", __spec__.name, str(order))
        except SignalException as stop:
            raise Preempted(stop.sigval) from None
        except ChildFailedError as failed:
            _explain(failed.failures, devices * hosts, folder)
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _launch_config(hosts: int, devices: int) -> Any:
    from torch.distributed.launcher.api import LaunchConfig

    common: dict[str, Any] = {
        "min_nodes": hosts, "max_nodes": hosts, "nproc_per_node": devices, "max_restarts": 0,
        "signals_to_handle": ",".join(s.name for s in heard(_SIGNALS)),
        "shutdown_timeout": GRACE,
    }  # fmt: skip
    if hosts == 1:
        return LaunchConfig(
            **common, rdzv_backend="c10d", rdzv_endpoint="localhost:0", run_id=uuid.uuid4().hex, local_addr="127.0.0.1"
        )
    missing = [name for name in ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise ValueError(
            f"trainer.num_nodes={hosts}, but {', '.join(missing)} is not set: start this command on every host with "
            "NODE_RANK=0, 1, ..., and MASTER_ADDR and MASTER_PORT of the first host, and with the same hydra.run.dir "
            "on a file system that they share; or use torchrun, or hydra/launcher=submitit_slurm"
        )
    endpoint = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    place = {"rank": int(os.environ["NODE_RANK"]), "timeout": 300}
    return LaunchConfig(**common, rdzv_backend="static", rdzv_endpoint=endpoint, run_id="bsq", rdzv_configs=place)


def _explain(failures: dict[int, Any], ranks: int, folder: RunFolder) -> None:
    """Raises what a failure of the ranks means.

    A rank that was killed is the cause of what befell the others; those that ended by SIGTERM got it from the agent.
    """

    def cause(item: tuple[int, Any]) -> tuple[int, int, int]:
        rank, failure = item
        kind = 2 if failure.exitcode == -signal.SIGTERM else 0 if failure.exitcode < 0 else 1
        return kind, failure.timestamp, rank

    rank, failure = min(failures.items(), key=cause)
    if failure.exitcode in STOPPED:
        raise Preempted(STOPPED[failure.exitcode])
    if failure.exitcode < 0:
        name = signal.Signals(-failure.exitcode).name
        message = f"rank {rank} of {ranks} was killed by {name}, so the others were ended"
        folder.record_error(RankFailedError(message))
    else:
        error = folder.error() or {"message": f"exit status {failure.exitcode}", "host": ""}
        # The first to say something is the cause; what the others then miss is that rank.
        rank = next((r for r, f in failures.items() if error["host"].endswith(f":{f.pid}")), rank)
        message = f"rank {rank} of {ranks} failed: {error['message']}"
    goes_on = f". The run can go on with resume={folder.path}" if folder.last.exists() else ""
    raise RankFailedError(message + goes_on)


def stop_politely(task: Callable[[DictConfig, RunFolder], None], cfg: DictConfig, folder: RunFolder) -> None:
    """Runs a task; when it was preempted, lets those react who listened to that signal before, such as submitit.

    submitit's handler queues the job again, on rank 0; on the others it returns, and they wait for the end that SLURM
    then makes: a rank that left by itself would take rank 0 with it. After Ctrl-C, at any moment of the task, and when
    the disk is full, it says which command goes on.
    """
    import time

    before = {number: signal.signal(number, leave) for number in heard([signal.SIGINT])}
    try:
        task(cfg, folder)
    except Preempted as stop:
        if stop.signum == signal.SIGINT:
            log.warning("stopped by Ctrl-C; go on with: %s", command_to_go_on(cfg, folder))
            raise
        handler = signal.getsignal(stop.signum)
        if callable(handler):
            handler(stop.signum, None)
            if stop.signum != signal.SIGTERM:
                time.sleep(GRACE)
        raise
    except OSError as error:
        if error.errno in FULL:
            log.warning("the disk is full; make room, then go on with: %s", command_to_go_on(cfg, folder))
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave(signum: int, frame: Any) -> None:
    """Handles a signal where nothing is to be saved. (Of a KeyboardInterrupt Lightning makes an exit status of 1.)"""
    raise Preempted(signum)


def command_to_go_on(cfg: DictConfig, folder: RunFolder) -> str:
    """What to type after a run was stopped."""
    if cfg.get("ptq") or not folder.config.exists():  # neither leaves anything that could be gone on from
        return shlex.join(["python", "-m", f"bsq_lightning.{HydraConfig.get().job.name}", *sys.argv[1:]])
    own = own_packages(OmegaConf.to_container(cfg, resolve=True))
    extra = [f"trust=[{','.join(own)}]"] if own else []
    extra += [f"until={cfg.until}"] if cfg.until else []
    return shlex.join(["python", "-m", "bsq_lightning.train", f"resume={folder.path}", *extra])


def main() -> None:
    """A rank: ``python -m bsq_lightning.cli.run.processes ORDER``, started by ``run_ranks``."""
    from hydra.core.utils import configure_log

    quiet_lightning()
    order: Any = OmegaConf.load(sys.argv[1])
    _end_with_parent()
    if os.environ["RANK"] == "0":
        configure_log(order.logging)
    check_settings(order.cfg)
    try:
        run(order.cfg, RunFolder(Path(order.folder)))
    except USER_ERRORS as error:
        log.error("%s", error)
        log.debug("where", exc_info=True)
        sys.exit(1)


def _end_with_parent() -> None:
    """Asks Linux for SIGTERM when the process that started this one dies, by SIGKILL too: no rank trains on unseen."""
    import ctypes

    set_parent_death_signal = 1
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


if __name__ == "__main__":
    main()
