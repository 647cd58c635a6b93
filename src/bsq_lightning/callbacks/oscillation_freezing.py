"""Weights that jump to and fro between two codes are held at one of them."""

import logging
import math
from dataclasses import asdict, dataclass
from typing import Any

import lightning as L
import torch
from torch import Tensor

from bsq_lightning.callbacks.each_step import EachStep
from bsq_lightning.module import QuantModule
from bsq_lightning.quantizers import WeightQuantizer

log = logging.getLogger(__name__)


@dataclass
class Record:
    """What is known of one tensor's codes, each of its shape; 14 bytes a weight.

    Args:
        precision: bits for which this holds; at others it begins anew.
        codes: those of the step before; of a weight that is held, the one it is held at.
        direction: of the last change, -1, 0 or 1.
        frequency: moving average of oscillations, f.
        mean: moving average of the codes.
        frozen: whether the weight is held.
    """

    precision: int
    codes: Tensor
    direction: Tensor
    frequency: Tensor
    mean: Tensor
    frozen: Tensor


def begun(quantizer: WeightQuantizer) -> Record:
    """The record of a tensor that has made no step."""
    codes = quantizer.codes()
    like = torch.zeros_like(codes)
    return Record(
        quantizer.precision,
        codes.clone(),
        like.to(torch.int8),
        like,
        codes.clone(),
        torch.zeros_like(like, dtype=torch.bool),
    )


@torch.no_grad()
def follow_(record: Record, quantizer: WeightQuantizer, momentum: float, threshold: float) -> None:
    """Takes the codes after a step into the record, and holds what oscillates too often.

    With x the integer code (section 4.2 of Nagel et al., ICML 2022, arXiv 2203.11086): a step oscillates, o = 1, where
    x changes against the direction of its last change; ``f <- m o + (1 - m) f``, ``mean <- m x + (1 - m) mean``. Where
    ``f > threshold`` the weight is held at ``round(mean)`` from now on. Nothing is read on the host.

    Example:
        >>> from bsq_lightning.quantizers import LatentQuantizer
        >>> quantizer = LatentQuantizer(torch.tensor([1.0, 1.0]), precision=1, step=1.0, units="weight")
        >>> record = begun(quantizer)
        >>> for value in (0.4, 0.6, 0.4, 0.6):
        ...     quantizer.latent.data = torch.tensor([value, 1.0])
        ...     follow_(record, quantizer, momentum=0.2, threshold=0.3)
        >>> record.frozen, quantizer.codes()
        (tensor([ True, False]), tensor([1., 1.]))
    """
    codes = quantizer.codes()
    direction = (codes - record.codes).sign().to(torch.int8)
    oscillates = (direction * record.direction) < 0
    record.frequency.lerp_(oscillates.to(codes.dtype), momentum)
    record.mean.lerp_(codes, momentum)
    record.direction = torch.where(direction != 0, direction, record.direction)
    fresh = (record.frequency > threshold) & ~record.frozen
    record.codes = torch.where(record.frozen, record.codes, torch.where(fresh, record.mean.round(), codes))
    record.frozen |= fresh
    quantizer.hold_codes_(record.frozen, record.codes)


class OscillationFreezing(EachStep):
    """After every optimizer step, ``follow_`` for every quantized tensor.

    The threshold falls by a cosine over the stage, so that few weights are held while all still move. The records are
    in the checkpoint: a run that resumes holds what the one that was never stopped holds.

    Args:
        momentum: m.
        start: threshold at the first step.
        end: threshold at the last.

    Raises:
        ValueError: a momentum outside (0, 1), or thresholds outside (0, 1).
    """

    def __init__(self, momentum: float = 0.01, start: float = 0.04, end: float = 0.01) -> None:
        for name, value in (("momentum", momentum), ("start", start), ("end", end)):
            if not 0 < value < 1:
                raise ValueError(f"freeze.{name} is between 0 and 1, not {value!r}")
        self.momentum, self.start, self.end = momentum, start, end
        self.records: dict[str, Record] = {}

    def check(self, module: QuantModule, steps: int) -> None:
        """Before training.

        Raises:
            ValueError: a quantizer without one float behind each code, with what to do.
        """
        for name, _, quantizer in module.network.quantizers():
            try:
                codes = quantizer.codes()
                quantizer.hold_codes_(torch.zeros_like(codes, dtype=torch.bool), codes)
            except ValueError as error:
                raise ValueError(f"freeze: layer {name} in stage {module.stage}: {error}; use freeze=none") from error

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        self.check(pl_module, int(trainer.estimated_stepping_batches))
        for name, _, quantizer in pl_module.network.quantizers():
            if name not in self.records:
                self.records[name] = begun(quantizer)

    def after_step(self, trainer: L.Trainer, module: QuantModule, batch: Any) -> None:
        done = trainer.global_step / int(trainer.estimated_stepping_batches)
        threshold = self.end + (self.start - self.end) * (1 + math.cos(math.pi * done)) / 2
        for name, parameter, quantizer in module.network.quantizers():
            record = self.records[name]
            if record.precision != quantizer.precision:
                self.records[name] = begun(quantizer)
                continue
            follow_(record, quantizer, self.momentum, threshold)
            with torch.no_grad():
                parameter.copy_(quantizer.weight())

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        held = sum(int(record.frozen.sum()) for record in self.records.values())
        total = sum(record.frozen.numel() for record in self.records.values())
        log.info("%d of %d weights were held because they oscillated (%.2f %%)", held, total, 100 * held / total)

    def state_dict(self) -> dict[str, Any]:
        return {name: asdict(record) for name, record in self.records.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.records = {name: Record(**record) for name, record in state_dict.items()}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for record in self.records.values():  # a checkpoint is read to the CPU
            for key in ("codes", "direction", "frequency", "mean", "frozen"):
                setattr(record, key, getattr(record, key).to(pl_module.device))
