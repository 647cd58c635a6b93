"""Batch norm's statistics measured anew, where weights change faster than running ones follow."""

from collections.abc import Iterator

import lightning as L
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from bsq_lightning.data import ImageDataModule
from bsq_lightning.module import QuantModule, measuring
from bsq_lightning.ops.streams import stage_seed


class BatchStatistics(L.Callback):
    """Before a network is measured, puts batch norm's mean and variance over N training batches in the place of the
    running ones: before every validation, at the end of every epoch, and after an adjustment that moves weights.

    Bit planes shrink weights by half between two adjustments; running statistics, averages over many steps, then belong
    to other weights, and accuracy is that of neither. A stage says ``batch_norm_batches=N`` where that is so; at a low
    rate the running ones are averages over more images and the better ones.

    The images are those the epoch began with, as trained on (augmented and mixed), the same on all ranks, in float32.
    Training computes with the statistics of its own batch and reads none of these, and no random number is used up:
    weights, latents, optimizer and the order of images are bit for bit those of a run without. What is measured is
    what the checkpoint keeps. It costs N forward passes an epoch.

    Args:
        num_batches: N; at least 1.

    Raises:
        ValueError: a number below 1.
    """

    def __init__(self, num_batches: int = 10) -> None:
        if type(num_batches) is not int or num_batches < 1:
            raise ValueError(f"batch_norm_batches is a positive number of batches or null, not {num_batches!r}")
        self.num_batches = num_batches
        self._step = -1

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.measure_(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step != self._step:  # validation has not been here
            self.measure_(trainer, pl_module)

    def measure_(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Measures them now, with the weights that are shipped."""
        assert isinstance(module, QuantModule)
        self._step = trainer.global_step
        norms = list(_batch_norms(module.network.net))
        data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
        if not norms:
            return
        seed = stage_seed(module.seed, module.stage) * 1_000_003 + trainer.current_epoch
        momenta = [norm.momentum for norm in norms]
        with measuring(module), torch.random.fork_rng(), torch.compiler.set_stance("force_eager"):
            torch.manual_seed(seed)  # the same mixture on all ranks
            for norm in norms:
                norm.train()
                norm.reset_running_stats()
                norm.momentum = None  # torch's word for the mean over all batches
            try:
                for _, batch in zip(
                    range(self.num_batches), data.epoch_dataloader(trainer.current_epoch), strict=False
                ):
                    images, _labels = batch if module.mix is None else module.mix(*batch)
                    module(images.to(module.device, next(module.parameters()).dtype))
            finally:
                for norm, momentum in zip(norms, momenta, strict=True):
                    norm.momentum = momentum


def measure_again_(trainer: L.Trainer, module: L.LightningModule) -> None:
    """``measure_`` of the trainer's BatchStatistics, if it has one: for a callback that has moved weights."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BatchStatistics):
            callback.measure_(trainer, module)


def _batch_norms(net: nn.Module) -> Iterator[_BatchNorm]:
    return (m for m in net.modules() if isinstance(m, _BatchNorm) and m.track_running_stats)
