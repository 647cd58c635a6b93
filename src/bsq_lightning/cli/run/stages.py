"""The stages of a run: each fits, is tested and is recorded; every one can be killed at any moment and continued."""

import logging
import platform
import time
from contextlib import nullcontext
from typing import Any

import lightning as L
import torch
import torchvision

from bsq_lightning import __version__
from bsq_lightning.checkpoint_io import load_checkpoint, load_state, save_weights
from bsq_lightning.cli.building.experiment import Experiment
from bsq_lightning.cli.run.card import leave_card
from bsq_lightning.cli.run.mirrors import Mirrors
from bsq_lightning.data import ImageDataModule
from bsq_lightning.distributed import barrier, world_size
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.streams import stage_seed
from bsq_lightning.quantized_tensor import load_state as load_quantized
from bsq_lightning.quantized_tensor import save_state as save_quantized
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme

log = logging.getLogger(__name__)


def run_stages(
    experiment: Experiment, folder: RunFolder, datamodule: ImageDataModule, mirrors: Mirrors
) -> dict[str, Any] | None:
    """Runs the planned stages that are not done yet and returns the summary; None if ``until`` stops it before.

    Raises:
        ValueError: ``until`` names a stage that the run has left behind.
    """
    L.seed_everything(experiment.seed, workers=True, verbose=False)  # the initial weights are drawn below
    planned, until = experiment.stages, experiment.until
    done = load_checkpoint(folder.last) if folder.last.exists() else None
    at = planned.index(done["stage"]) if done is not None else 0
    if until is not None and at > planned.index(until):
        raise ValueError(
            f"until={until}, but this run is in its stage {planned[at]} already: leave until out to go on, or give "
            f"that of a later stage"
        )
    if at == 0:
        _record_float(experiment, folder, datamodule)
    network = None
    for stage in planned[at:]:
        if network is None:
            network = experiment.first_network(stage, datamodule.num_classes, restored=done is not None)
        else:
            # What is drawn when a stage begins is drawn alike in a run that resumes here.
            L.seed_everything(stage_seed(experiment.seed, stage), workers=True, verbose=False)
            floats = folder.end_of("float")
            network = experiment.next_network(network, stage, datamodule.num_classes, floats)
        network = _run_stage(experiment, folder, datamodule, mirrors, network, stage, done)
        done = None
        if stage == until and stage != planned[-1]:
            return None
    assert network is not None
    summary = summarize(experiment, folder, network, datamodule)
    leave_card(folder, experiment, network, datamodule, summary)
    return summary


def _run_stage(
    experiment: Experiment,
    folder: RunFolder,
    datamodule: ImageDataModule,
    mirrors: Mirrors,
    network: QuantizedNetwork,
    stage: str,
    done: dict[str, Any] | None,
) -> QuantizedNetwork:
    epochs = experiment.stage(stage).epochs
    L.seed_everything(stage_seed(experiment.seed, stage), workers=True, verbose=False)
    network.count_macs_(datamodule.image_size)
    module = experiment.module(network, stage, datamodule.num_classes)
    mirrors.begin_stage(experiment.stages[: experiment.stages.index(stage)])
    if done is not None and (epochs is None or done["epoch"] + 1 >= epochs) and "within_epoch" not in done:
        load_state(module, done, folder.last)
        network.on_epoch(1.0)
    elif epochs is None:
        log.info("stage %s trains nothing", stage)
        experiment.calibration().calibrate_(module, datamodule)
        if folder.writer:
            save_weights(module, stage, folder.last)
    else:
        experiment.teach(module, stage, datamodule.num_classes, folder.end_of("float"))
        trainer = experiment.trainer(
            max_epochs=epochs, callbacks=experiment.callbacks(folder.path, stage), logger=mirrors.loggers or False
        )
        log.info("stage %s %s of %d", stage, _where(done), epochs)
        with network.compiled() if experiment.compile else nullcontext():
            trainer.fit(module, datamodule, ckpt_path=str(folder.last) if done is not None else None)
    if network.names() and folder.writer:
        state = network.state().fitting()
        save_quantized(folder.quantized_file, state)
        folder.write_scheme(state.scheme().to_json())
    if stage not in folder.results():
        result = _measure(experiment, module, datamodule)
        folder.add_result(stage, result)
        mirrors.log_result(stage, result)
    if experiment.keeps_end_of(stage):
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


def _measure(experiment: Experiment, module: QuantModule, datamodule: ImageDataModule) -> dict[str, Any]:
    """Validation and test of the live network in float32, once at the end of a stage."""
    trainer = experiment.test_trainer()
    result: dict[str, Any] = {}
    if not datamodule.val_is_test:
        result |= trainer.validate(module, datamodule, verbose=False)[0]
    result |= trainer.test(module, datamodule, verbose=False)[0]
    batches = trainer.num_test_batches[0]  # trainer.limit_test_batches may leave some out
    result["test/images"] = int(min(datamodule.test_size, batches * datamodule.eval_batch_size * world_size()))
    scheme = module.network.scheme()
    if scheme.layers:
        result |= {"mean_precision": scheme.mean_precision, "sizes": scheme.sizes(), "gbops": scheme.gbops}
    log.info("stage %s: test accuracy %.2f %%", module.stage, 100 * result["test/acc"])
    return result


def _record_float(experiment: Experiment, folder: RunFolder, datamodule: ImageDataModule) -> None:
    """Accuracy of given float weights, and right after quantizing them, before any training."""
    names = ("float",) if experiment.quantizes_without_training else ("float", "quantized_before_training")
    missing = [name for name in names if name not in folder.results()]
    if not missing or not experiment.has_float_weights:
        return
    net = experiment.net(datamodule.num_classes)
    for name in missing:
        stage = "float" if name == "float" else experiment.stages[0]
        network = experiment.network(net, stage)
        module = experiment.module(network, stage, datamodule.num_classes)
        if stage != "float":
            experiment.calibration().calibrate_(module, datamodule)
        folder.add_result(name, _measure(experiment, module, datamodule))


def summarize(
    experiment: Experiment, folder: RunFolder, network: QuantizedNetwork, datamodule: ImageDataModule
) -> dict[str, Any]:
    """What ``summary.json`` holds; figures come from the files of the run folder."""
    results, planned = folder.results(), experiment.stages
    last = results.get(planned[-1], {})  # a rank that does not write may be here before the file is
    # The file holds what is shipped; a float network has none.
    scheme: Scheme = load_quantized(folder.quantized_file).scheme() if network.names() else network.scheme()

    def accuracies(name: str | None) -> dict[str, Any] | None:
        row = results.get(name or "")
        return (
            {key: row[key] for key in ("val/acc", "val/top5", "test/acc", "test/top5") if key in row} if row else None
        )

    return {
        "model": experiment.model,
        "method": experiment.method,
        "data": datamodule.describe() | {"test": last.get("test/images", datamodule.test_size)},
        "val": "test set" if datamodule.val_is_test else "seen_in_float" if experiment.has_float_weights else "unseen",
        "accuracy": {
            "float": accuracies("float"),
            "quantized_before_training": accuracies("quantized_before_training"),
            "before_finetune": accuracies(experiment.searched_stage),
            "final": accuracies(planned[-1]),
        },
        "mean_precision": scheme.mean_precision,
        "sizes": scheme.sizes(),
        "gbops": scheme.gbops,
        "scheme": scheme.precisions(),
        "act_precision": scheme.act_precision,
        "seconds": _seconds(folder),
        "stages": planned,
        "epochs": {stage: experiment.stage(stage).epochs or 0 for stage in planned},
        "float_stage": experiment.float_stage,
        "seed": experiment.seed,
        "arithmetic": experiment.arithmetic,
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
    seconds: dict[str, float] = {}
    for row in folder.metrics():
        seconds[row["stage"]] = round(seconds.get(row["stage"], 0.0) + float(row["seconds"]), 1)
    return seconds
