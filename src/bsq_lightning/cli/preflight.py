"""Everything that can go wrong later is tried before the first epoch: build, load, one real step, write."""

import copy
import resource
import time
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from bsq_lightning.callbacks import load_checkpoint
from bsq_lightning.cli.build import (
    build_callbacks,
    build_datamodule,
    build_module,
    build_trainer,
    load_state,
    planned_stages,
)
from bsq_lightning.cli.config import instantiate
from bsq_lightning.cli.loggers import build_loggers
from bsq_lightning.cli.stages import first_network, next_network
from bsq_lightning.data import ImageDataModule
from bsq_lightning.module import QuantModule
from bsq_lightning.run_folder import RunFolder


def preflight(cfg: DictConfig, folder: RunFolder) -> ImageDataModule:
    """Builds and checks all that a run needs and prints it; returns the data. No random number is used up.

    Raises:
        ValueError, FileNotFoundError, PermissionError: the first thing that is wrong, with its remedy.
    """
    stages = planned_stages(cfg)
    instantiate(cfg.reg)  # a wrong alpha is found before any data is read
    build_trainer(cfg, max_epochs=1, callbacks=build_callbacks(cfg, folder.path), logger=False)
    build_loggers(cfg, folder)  # a missing package; nothing is connected
    datamodule = build_datamodule(cfg)
    done = load_checkpoint(folder.last) if folder.last.exists() else None
    rows: list[tuple[str, str]] = [(key, str(value)) for key, value in datamodule.describe().items()]
    with torch.random.fork_rng():
        torch.manual_seed(cfg.seed)
        first = done["stage"] if done else stages[0]
        network = first_network(cfg, first, datamodule, restored=done is not None)
        if done is not None:
            load_state(build_module(cfg, network, first, datamodule.num_classes), done, folder.last)
        total = 0.0
        for stage in stages[stages.index(first) :]:
            if stage != first:
                network = next_network(cfg, copy.deepcopy(network), stage, datamodule, None)
            module = build_module(cfg, network, stage, datamodule.num_classes)
            seconds = _seconds_per_step(module, datamodule)
            steps = len(datamodule.train_dataloader()) * cfg.stages[stage].epochs
            total += seconds * steps
            each = f"{1000 * seconds:.0f} ms each, about {_span(seconds * steps)}"
            rows.append((f"stage {stage}", f"{cfg.stages[stage].epochs} epochs, {steps} steps, {each}"))
            rows.extend(_layers(module) if stage != "float" else [])
    if cfg.reg and "bits" not in stages:
        rows.append(("regularizer", "not used: there is no stage with bit planes"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    rows.append(("memory", f"{peak:.0f} MB was the peak of this process, one step of each stage on the CPU included"))
    rows.append(("training in all", f"about {_span(total)} on the CPU of this machine"))
    rows.append(("run folder", f"{folder.path} (writable)"))
    table = Table(title="preflight", show_header=False, title_justify="left")
    for key, value in rows:
        table.add_row(key, value)
    # Without a terminal rich assumes 80 columns and folds the folder's name in the middle.
    Console(width=None if Console().is_terminal else 120).print(table)
    return datamodule


def _seconds_per_step(module: QuantModule, datamodule: ImageDataModule) -> float:
    """Time of one real step on a copy, after one to warm up; on the CPU, in float32."""
    module = copy.deepcopy(module).train()
    optimizer: Any = module.configure_optimizers()
    optimizer = optimizer["optimizer"] if isinstance(optimizer, dict) else optimizer
    images, labels = next(iter(datamodule.train_dataloader()))
    started = 0.0
    for _ in range(2):
        started = time.monotonic()
        output = module(images)
        logits: Tensor = output if isinstance(output, Tensor) else output.logits
        if logits.shape[-1] != datamodule.num_classes:
            raise ValueError(
                f"the model has {logits.shape[-1]} outputs, but the data has {datamodule.num_classes} classes: they "
                "must agree (the model's num_classes follows the data unless it or a torchvision weights name is given)"
            )
        optimizer.zero_grad()
        F.cross_entropy(logits, labels).backward()
        optimizer.step()
    return time.monotonic() - started


def _layers(module: QuantModule) -> list[tuple[str, str]]:
    network = module.network
    scheme = network.scheme()
    latents = sum(latent.numel() * latent.element_size() for _, _, q in network.quantizers() for latent in q.latents())
    weights = sum(parameter.numel() * 4 for _, parameter, _ in network.quantizers())
    rows = [
        (
            "  quantized",
            f"{len(scheme.layers)} tensors, {scheme.size:,} weights, {scheme.mean_precision:.2f} bits each, "
            f"{scheme.compression('paper'):.2f} x; latents and momentum {2 * latents / 1e6:.1f} MB beside "
            f"{2 * weights / 1e6:.1f} MB of weights and gradients",
        )
    ]
    if network.act_precision:
        where = "inputs of layers" if network.at_inputs else "outputs of ReLUs"
        rows.append(("  activations", f"{len(network.activation_quantizers)} {where} at {network.act_precision} bits"))
    rows += [(f"  skipped {name}", reason) for name, reason in network.skipped.items()]
    return rows


def _span(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
