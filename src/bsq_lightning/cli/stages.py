"""The stages of a run: each fits, is tested and is recorded; every one can be killed at any moment and continued."""

import logging
import platform
import time
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
import torchvision
from omegaconf import DictConfig

from bsq_lightning import __version__
from bsq_lightning.callbacks import RangeCalibration, load_checkpoint
from bsq_lightning.cli.build import (
    build_callbacks,
    build_module,
    build_net,
    build_network,
    build_test_trainer,
    build_trainer,
    has_float_weights,
    load_state,
    planned_stages,
    test_arithmetic,
)
from bsq_lightning.cli.config import instantiate
from bsq_lightning.cli.loggers import Mirrors
from bsq_lightning.data import ImageDataModule
from bsq_lightning.models import load_float_weights
from bsq_lightning.module import STAGES, QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.ranks import barrier, world_size
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme

log = logging.getLogger(__name__)


def run_stages(
    cfg: DictConfig, folder: RunFolder, datamodule: ImageDataModule, mirrors: Mirrors
) -> dict[str, Any] | None:
    """Runs the planned stages that are not done yet and returns the summary; None if ``until`` stops it before."""
    L.seed_everything(cfg.seed, workers=True, verbose=False)  # the initial weights are drawn below
    network = None
    planned = planned_stages(cfg)
    done = load_checkpoint(folder.last) if folder.last.exists() else None
    if done is None or planned.index(done["stage"]) == 0:
        _record_float(cfg, folder, datamodule)
    for stage in planned:
        if done is not None and STAGES.index(stage) < STAGES.index(done["stage"]):
            continue
        if network is None:
            network = first_network(cfg, stage, datamodule, restored=done is not None)
        else:
            network = next_network(cfg, network, stage, datamodule, folder)
        network = _run_stage(cfg, folder, datamodule, mirrors, network, stage, done)
        done = None
        if stage == cfg.until and stage != planned[-1]:
            return None
    assert network is not None
    return summarize(cfg, folder, network, datamodule)


def first_network(cfg: DictConfig, stage: str, datamodule: ImageDataModule, restored: bool) -> QuantizedNetwork:
    """The network a run (or its continuation, whose checkpoint brings the weights) starts with."""
    return build_network(cfg, build_net(cfg, datamodule.num_classes, with_weights=not restored), stage, restored)


def next_network(
    cfg: DictConfig, network: QuantizedNetwork, stage: str, datamodule: ImageDataModule, folder: RunFolder | None
) -> QuantizedNetwork:
    """From the network of one stage to that of the next; without a folder (a trial) rewound weights are random."""
    if not network.names():
        return build_network(cfg, network.net, stage)
    if cfg.quant.rewind:
        net = build_net(cfg, datamodule.num_classes)
        if not has_float_weights(cfg) and folder is not None:
            load_float_weights(net, folder.checkpoints / "float.ckpt")
        return build_network(cfg, net, stage, scheme=network.scheme())
    network.fix_scheme_(instantiate(cfg.quant.finetune), lose_biases=cfg.quant.lose_biases)
    network.clamp = tuple(cfg.quant.clamp[stage])
    return network


def _run_stage(
    cfg: DictConfig,
    folder: RunFolder,
    datamodule: ImageDataModule,
    mirrors: Mirrors,
    network: QuantizedNetwork,
    stage: str,
    done: dict[str, Any] | None,
) -> QuantizedNetwork:
    epochs = cfg.stages[stage].epochs
    L.seed_everything(cfg.seed * len(STAGES) + STAGES.index(stage), workers=True, verbose=False)
    network.count_macs_(datamodule.image_size)
    module = build_module(cfg, network, stage, datamodule.num_classes)
    mirrors.begin_stage(stage)
    if done is not None and done["epoch"] + 1 >= epochs and "within_epoch" not in done:
        load_state(module, done, folder.last)
    else:
        trainer = build_trainer(
            cfg, max_epochs=epochs, callbacks=build_callbacks(cfg, folder.path), logger=mirrors.loggers or False
        )
        log.info("stage %s %s of %d", stage, _where(done), epochs)
        with network.compiled() if cfg.get("compile") else nullcontext():
            trainer.fit(module, datamodule, ckpt_path=str(folder.last) if done is not None else None)
    if stage not in folder.results():
        result = _measure(cfg, module, datamodule)
        folder.add_result(stage, result)
        mirrors.log_result(stage, result)
    if stage != STAGES[-1]:
        folder.keep_checkpoint(stage)
        barrier()  # another rank may need it for the next stage
    return network


def _where(done: dict[str, Any] | None) -> str:
    """Where a stage starts, in words."""
    if done is None:
        return "starts at epoch 1"
    if "within_epoch" in done:
        return f"continues after batch {done['within_epoch']['batches']} of epoch {done['epoch'] + 1}"
    return f"continues at epoch {done['epoch'] + 2}"


def _measure(cfg: DictConfig, module: QuantModule, datamodule: ImageDataModule) -> dict[str, Any]:
    """Validation and test of the live network in float32, once at the end of a stage."""
    trainer = build_test_trainer(cfg)
    result: dict[str, Any] = {}
    if not datamodule.val_is_test:
        result |= trainer.validate(module, datamodule, verbose=False)[0]
    result |= trainer.test(module, datamodule, verbose=False)[0]
    scheme = module.network.scheme()
    if scheme.layers:
        result |= {"mean_precision": scheme.mean_precision, "sizes": scheme.sizes(), "gbops": scheme.gbops}
    log.info("stage %s: test accuracy %.2f %%", module.stage, 100 * result["test/acc"])
    return result


def _record_float(cfg: DictConfig, folder: RunFolder, datamodule: ImageDataModule) -> None:
    """Accuracy of given float weights, and right after quantizing them, before any training."""
    missing = [name for name in ("float", "quantized_before_training") if name not in folder.results()]
    if not missing or not has_float_weights(cfg):
        return
    net = build_net(cfg, datamodule.num_classes)
    for name in missing:
        stage = "float" if name == "float" else planned_stages(cfg)[0]
        network = build_network(cfg, net, stage)
        module = build_module(cfg, network, stage, datamodule.num_classes)
        if stage != "float":
            calibration_of(cfg).calibrate_(module, datamodule)
        folder.add_result(name, _measure(cfg, module, datamodule))


def calibration_of(cfg: DictConfig) -> RangeCalibration:
    """The run's range calibration; without one, ranges stay those of the batch."""
    config = cfg.callbacks.get("range_calibration")
    return instantiate(config) if config else RangeCalibration(0)


def summarize(
    cfg: DictConfig, folder: RunFolder, network: QuantizedNetwork, datamodule: ImageDataModule
) -> dict[str, Any]:
    """What ``summary.json`` holds; figures come from the files of the run folder and the final network."""
    results = folder.results()
    scheme: Scheme = network.scheme()
    last = planned_stages(cfg)[-1]

    def accuracies(name: str) -> dict[str, Any] | None:
        row = results.get(name)
        return (
            {key: row[key] for key in ("val/acc", "val/top5", "test/acc", "test/top5") if key in row} if row else None
        )

    return {
        "model": cfg.model["_target_"],
        "data": datamodule.describe(),
        "val": "test set" if datamodule.val_is_test else "seen_in_float" if has_float_weights(cfg) else "unseen",
        "accuracy": {
            "float": accuracies("float"),
            "quantized_before_training": accuracies("quantized_before_training"),
            "before_finetune": accuracies("bits"),
            "final": accuracies(last),
        },
        "mean_precision": scheme.mean_precision,
        "sizes": scheme.sizes(),
        "gbops": scheme.gbops,
        "scheme": scheme.precisions(),
        "act_precision": scheme.act_precision,
        "seconds": _seconds(folder),
        "stages": planned_stages(cfg),
        "epochs": {stage: cfg.stages[stage].epochs for stage in planned_stages(cfg)},
        "float_stage": cfg.float_stage,
        "seed": cfg.seed,
        "arithmetic": {"train": str(cfg.trainer.precision), "test": test_arithmetic(cfg)},
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "devices": world_size(),
        "threads": torch.get_num_threads(),
        "versions": {
            "bsq_lightning": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
            "lightning": L.__version__,
        },
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _seconds(folder: RunFolder) -> dict[str, float]:
    """Seconds spent in each stage's epochs, over every continuation of the run."""
    import csv

    seconds: dict[str, float] = {}
    with open(folder.path / "metrics.csv", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            seconds[row["stage"]] = round(seconds.get(row["stage"], 0.0) + float(row["seconds"]), 1)
    return seconds
