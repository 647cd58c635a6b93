"""Everything that can go wrong later is tried before the first epoch: build, load, one real step, write."""

import copy
import resource
import time
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch.optim import Optimizer

from bsq_lightning.callbacks import OscillationFreezing, PrecisionAllocation
from bsq_lightning.checkpoint_io import load_checkpoint, load_state
from bsq_lightning.cli.building.experiment import Experiment
from bsq_lightning.cli.building.machine import own_memory
from bsq_lightning.cli.run.stage_memory import stage_memory
from bsq_lightning.cli.terminal import span
from bsq_lightning.data import ImageDataModule
from bsq_lightning.distributed import alone, world_size
from bsq_lightning.module import QuantModule, measuring
from bsq_lightning.run_folder import RunFolder

SMALL_IMAGE, TRIAL_IMAGES = 64, 8  # a whole batch of larger images would take minutes on a CPU


def preflight(experiment: Experiment, folder: RunFolder) -> ImageDataModule:
    """Builds and checks all that a run needs and prints it; returns the data. No random number is used up.

    Raises:
        ValueError, FileNotFoundError, PermissionError: the first thing that is wrong, with its remedy.
    """
    stages = experiment.stages
    regularizer = experiment.check_regularizer()  # a wrong alpha is found before any data is read
    callbacks = {stage: experiment.callbacks(folder.path, stage) for stage in stages}
    for stage in stages:
        experiment.trainer(max_epochs=1, callbacks=callbacks[stage], logger=False)
    datamodule = experiment.datamodule()
    _check_images(experiment, datamodule)
    done = load_checkpoint(folder.last) if folder.last.exists() else None
    rows: list[tuple[str, str]] = [(key, str(value)) for key, value in datamodule.describe().items()]
    steps_per_epoch = -(-datamodule.train_size // (datamodule.batch_size * world_size()))
    if world_size() > 1:
        rows.append(("devices", f"{world_size()}, {datamodule.batch_size * world_size()} images a step"))
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)
        first = done["stage"] if done else stages[0]
        network = experiment.first_network(first, datamodule.num_classes, restored=done is not None)
        module = experiment.module(network, first, datamodule.num_classes)  # asks for what holds where a stage begins
        if done is not None:
            load_state(module, done, folder.last)
        total = 0.0
        for stage in stages[stages.index(first) :]:
            if stage != first:
                network = experiment.next_network(copy.deepcopy(network), stage, datamodule.num_classes, None)
                module = experiment.module(network, stage, datamodule.num_classes)
            epochs = experiment.stage(stage).epochs
            if epochs is None:
                rows.append((f"stage {stage}", "trains nothing"))
                rows.extend(_layers(module))
                continue
            if epochs == 1 and network.scheduled and not network.exact:
                raise ValueError(
                    f"stage {stage} has one epoch, so {experiment.method['name']} would begin it where its schedule, "
                    "which goes from the first epoch to the last, ends: give it 2 or more"
                )
            if done is None or stage != first:  # within a stage the bits have moved on
                for callback in callbacks[stage]:
                    if isinstance(callback, (PrecisionAllocation, OscillationFreezing)):
                        callback.check(module, steps_per_epoch * epochs)
            experiment.teach(module, stage, datamodule.num_classes, None)
            own = own_memory()  # before the trial, whose own is counted with the stage
            with alone():
                trial = _try_step(module, datamodule)
                held = stage_memory(
                    trial.module,
                    trial.optimizer,
                    datamodule.batch_size,
                    datamodule.image_size,
                    experiment.arithmetic["train"],
                    several_devices=experiment.has_buckets,
                )
            experiment.check_memory(own + held.total)
            steps = steps_per_epoch * epochs
            total += trial.seconds * steps
            each = f"{1000 * trial.seconds:.0f} ms each, about {span(trial.seconds * steps)}"
            if trial.images < min(datamodule.batch_size, datamodule.train_size):
                each += f" (scaled up from {trial.images} images)"
            rows.append((f"stage {stage}", f"{epochs} epochs, {steps} steps, {each}"))
            rows.append(("  memory per device", str(held)))
            rows.extend(_layers(module) if network.names() else [])
            del trial
    if regularizer and not any(experiment.stage(stage).regularized for stage in stages):
        rows.append(("regularizer", "not used: no stage of this run has one"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(
        ("memory here", f"{peak:.0f} MB was the peak of this check, one step of each stage on the CPU included")
    )
    rows.append(("training in all", f"about {span(total)} on the CPU of this machine"))
    rows.append(("run folder", f"{folder.path} (writable)"))
    table = Table(title="preflight", show_header=False, title_justify="left")
    for key, value in rows:
        table.add_row(key, value)
    if not folder.writer:
        return datamodule
    # Without a terminal rich assumes 80 columns and folds the folder's name in the middle.
    Console(width=None if Console().is_terminal else 120).print(table)
    return datamodule


def _check_images(experiment: Experiment, datamodule: ImageDataModule) -> None:
    if datamodule.num_classes < 2:
        raise ValueError(f"the data has {datamodule.num_classes} class: there is nothing to tell apart (data.root)")
    batches = {"train": datamodule.train_size, "val": datamodule.val_size, "test": datamodule.test_size}
    for part, images in batches.items():
        each = datamodule.batch_size if part == "train" else datamodule.eval_batch_size
        limit, number = experiment.batch_limit(part), -(-images // (each * world_size()))
        if isinstance(limit, float) and int(limit * number) < 1:
            raise ValueError(
                f"trainer.limit_{part}_batches={limit} leaves none of the {number} batches: give a number of batches, "
                f"or a fraction from {1 / number:.2g} on"
            )


class Trial(NamedTuple):
    """One real step on a copy of a module: how long it takes for a whole batch, and what it leaves."""

    seconds: float
    images: int
    module: QuantModule
    optimizer: Optimizer


def _try_step(module: QuantModule, datamodule: ImageDataModule) -> Trial:
    """Times one real step on a copy, after one to warm up; on the CPU, in float32.

    Of large images only a few are taken, and the time of forward and backward is scaled to the batch.
    """
    module = copy.deepcopy(module).train()
    optimizer: Any = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    batch = min(datamodule.batch_size, datamodule.train_size)
    few = batch if datamodule.image_size <= SMALL_IMAGE else min(batch, TRIAL_IMAGES)
    images, labels = datamodule.trial_batch(few)
    module.network.on_epoch(0.0)
    with measuring(module):
        outputs = module(images[:2]).shape[-1]
    if outputs != datamodule.num_classes:
        raise ValueError(
            f"the model has {outputs} outputs, but the data has {datamodule.num_classes} classes: they must agree "
            "(the model's num_classes follows the data unless it or a torchvision weights name is given)"
        )
    started = computed = 0.0
    for _ in range(2):
        module.network.write_training_weights_(torch.Generator().manual_seed(0))
        started = time.monotonic()
        loss, _ = module.loss((images, labels))
        optimizer.zero_grad()
        loss.backward()
        computed = time.monotonic()
        optimizer.step()
    seconds = (computed - started) * batch / len(labels) + time.monotonic() - computed
    return Trial(seconds, len(labels), module, optimizer)


def _layers(module: QuantModule) -> list[tuple[str, str]]:
    network = module.network
    scheme = network.scheme()
    rows = [
        (
            "  quantized",
            f"{len(scheme.layers)} tensors, {scheme.size:,} weights, {scheme.mean_precision:.2f} bits each, "
            f"{scheme.compression('paper'):.2f} x",
        )
    ]
    if network.act_precision:
        where = "inputs of layers" if network.at_inputs else "outputs of ReLUs"
        rows.append(("  activations", f"{len(network.activation_quantizers)} {where} at {network.act_precision} bits"))
    rows += [(f"  skipped {name}", reason) for name, reason in network.skipped.items()]
    return rows
