"""Callbacks and Trainers from a config."""

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig

from bsq_lightning.callbacks import BatchStatistics, PrecisionAllocation, RangeCalibration, RunBar, RunRecorder
from bsq_lightning.checkpoint_io import AtomicCheckpointIO
from bsq_lightning.cli.building.machine import available_cores, available_memory
from bsq_lightning.cli.building.stage import FLOAT, planned_stages, stage_settings
from bsq_lightning.cli.config import instantiate

_REFUSED_CALLBACKS = ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging", "ModelPruning")


def build_callbacks(cfg: DictConfig, folder: Path, stage: str) -> list[L.Callback]:
    """The callbacks in the order of the config, which is their meaning.

    What they leave open (null) is filled in: the run folder for those that write, and the stage's interval.
    """
    settings = stage_settings(cfg, stage)
    interval = settings.adjust_every_n_epochs
    given = {"folder": str(folder), "dirpath": str(folder / "checkpoints"), "every_n_epochs": interval}
    callbacks: list[L.Callback] = []
    if settings.allocator:
        callbacks.append(PrecisionAllocation(instantiate(settings.allocator), str(folder)))
    if stage != FLOAT and stage == planned_stages(cfg)[-1]:
        callbacks += [instantiate(cfg[cure]) for cure in ("freeze", "average") if cfg.get(cure)]
    if settings.batch_norm_batches:
        callbacks.append(BatchStatistics(settings.batch_norm_batches))  # before whatever measures
    for config in cfg.callbacks.values():
        if not config:
            continue
        filled = {key: given[key] for key in given if key in config and config[key] is None}
        if interval is None and str(config.get("_target_")).endswith(".PrecisionAdjustment"):
            filled["every_n_epochs"] = None  # an interval of the user's own is for stages that adjust
        callbacks.append(instantiate(config, **filled))
    if not {RunRecorder, ModelCheckpoint} <= {type(c) for c in callbacks}:
        raise ValueError(
            "callbacks.run_recorder and callbacks.checkpoint cannot be removed: a run could not be resumed"
        )
    if shows_bar(cfg) and not any(isinstance(c, ProgressBar) for c in callbacks):
        callbacks.append(_bar(cfg, stage))
    refused = [type(c).__name__ for c in callbacks if type(c).__name__ in _REFUSED_CALLBACKS]
    if refused:
        raise ValueError(
            f"{refused[0]} writes weights of its own, which are not on any quantizer's grid: remove it from callbacks"
        )
    return callbacks


def _bar(cfg: DictConfig, stage: str) -> RunBar:
    planned = planned_stages(cfg)
    ends = [planned.index(name) for name in (stage, cfg.get("until") or planned[-1]) if name in planned]
    return RunBar({name: stage_settings(cfg, name).epochs or 0 for name in planned[: max(ends) + 1]}, stage)


def calibration_of(cfg: DictConfig) -> RangeCalibration:
    """The run's range calibration; without one, ranges stay those of the batch."""
    config = cfg.callbacks.get("range_calibration")
    return instantiate(config) if config else RangeCalibration(0)


def device_count(cfg: DictConfig) -> int:
    """Processes of the run: devices on all hosts, ``auto`` and -1 counted."""
    hosts = cfg.trainer.get("num_nodes", 1)
    if str(cfg.trainer.get("devices", 1)) == "1" and hosts == 1:
        return 1
    return _counted(cfg).num_devices * hosts


def _counted(cfg: DictConfig) -> L.Trainer:
    """A Trainer that knows the devices of this host.

    Raises:
        ValueError: Lightning cannot have them.
    """
    try:
        return L.Trainer(
            accelerator=cfg.trainer.accelerator, devices=cfg.trainer.get("devices", 1), logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            plugins=[LightningEnvironment()],  # what torchrun or SLURM have started is checked later
        )  # fmt: skip
    except (MisconfigurationException, ModuleNotFoundError, TypeError, RuntimeError) as error:
        raise ValueError(
            f"trainer.accelerator={cfg.trainer.accelerator} trainer.devices={cfg.trainer.devices}: {error}"
        ) from error


def check_processes(cfg: DictConfig) -> None:
    """Refuses more processes on the CPUs of this host than it has cores; two always go, for a look at what DDP does.

    Raises:
        ValueError: there are more, and ``oversubscribe`` does not allow it.
    """
    if device_count(cfg) == 1 or cfg.get("oversubscribe"):
        return
    counted, cores = _counted(cfg), available_cores()
    if isinstance(counted.accelerator, CPUAccelerator) and counted.num_devices > max(2, cores):
        raise ValueError(
            f"trainer.devices={counted.num_devices} would start so many on {cores} cores, each with a network "
            f"and images of its own: trainer.devices={max(2, cores)} fits. oversubscribe=true starts them all the same"
        )


def check_memory(cfg: DictConfig, bytes_each: int) -> None:
    """Refuses processes on the CPUs of this host that its memory does not hold.

    Args:
        cfg: the config.
        bytes_each: what a process holds at most, beside what all of them share.

    Raises:
        ValueError: together they need more than there is, and ``oversubscribe`` does not allow it.
    """
    if device_count(cfg) == 1 or cfg.get("oversubscribe"):
        return
    counted, memory = _counted(cfg), available_memory()
    if isinstance(counted.accelerator, CPUAccelerator) and counted.num_devices * bytes_each > memory:
        raise ValueError(
            f"{counted.num_devices} processes of {bytes_each / 1e9:.1f} GB each need more than the {memory / 1e9:.1f} "
            f"GB of this machine: trainer.devices={memory // bytes_each} fits, or a smaller data.batch_size. "
            "oversubscribe=true goes on all the same"
        )


def ddp() -> DDPStrategy:
    """DDP as ``trainer=ddp`` has it: batch norm's statistics are shared once an epoch instead of at every forward,
    which also lets ranks have unequal numbers of test batches; a lost host is noticed after ten minutes at most."""
    return DDPStrategy(broadcast_buffers=False, timeout=timedelta(minutes=10))


def shows_bar(cfg: DictConfig) -> bool:
    """Whether a progress bar is drawn: where it is not switched off, and on a terminal only."""
    return bool(cfg.trainer.enable_progress_bar) and sys.stdout.isatty()


def build_trainer(cfg: DictConfig, **changes: Any) -> L.Trainer:
    """Lightning's Trainer; ``changes`` replace what the config says."""
    strategy = cfg.trainer.get("strategy", "auto")
    if device_count(cfg) == 1:
        # DDP of one process would leave its process group and variables behind for the next job of a sweep.
        changes = {"strategy": "auto", **changes}
    elif isinstance(strategy, str) and strategy in ("auto", "ddp"):
        changes = {"strategy": ddp(), **changes}
    return instantiate(
        cfg.trainer, **{"plugins": [AtomicCheckpointIO()], "enable_progress_bar": shows_bar(cfg), **changes}
    )


def test_arithmetic(cfg: DictConfig) -> str:
    """Arithmetic of test and evaluate: float32 whatever trained (bf16 moves codes to their neighbours), or float64."""
    return "64-true" if str(cfg.trainer.precision) == "64-true" else "32-true"


def build_test_trainer(cfg: DictConfig) -> L.Trainer:
    """A Trainer for test and evaluate."""
    return build_trainer(
        cfg, precision=test_arithmetic(cfg), logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
