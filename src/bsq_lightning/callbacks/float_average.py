"""Moving averages of what stays float; quantized weights are on a grid, which an average would leave."""

from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn

from bsq_lightning.callbacks.each_step import EachStep
from bsq_lightning.module import QuantModule


class FloatAverage(EachStep):
    """Averages the float parameters over the steps, ``a <- decay a + (1 - decay) p``, and measures with the averages.

    Float parameters are those that are trained and not quantized: batch norm's factors and offsets, biases, learned
    clips. Averages stand in their place during validation, and for good after the last epoch, before ranges are fixed
    and the checkpoint is written, so that what is stored is what was measured; until then the next step trains on with
    what was there before, which is what checkpoints between epochs hold. An average begins at its parameter, and
    follows it fast at first: decay is at most ``(1 + t) / (10 + t)`` at step t. They are in the checkpoint: a run that
    resumes has them bit for bit.

    Args:
        decay: of the average, each step.

    Raises:
        ValueError: a decay outside (0, 1).
    """

    def __init__(self, decay: float = 0.998) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"average.decay is between 0 and 1, such as 0.998, not {decay!r}")
        self.decay = decay
        self.averages: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for name, parameter in _floats(pl_module):
            kept = self.averages.get(name, parameter.detach())
            self.averages[name] = kept.to(parameter).clone()

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer, module: QuantModule, batch: Any) -> None:
        decay = min(self.decay, (1 + trainer.global_step) / (10 + trainer.global_step))
        for name, parameter in _floats(module):
            self.averages[name].lerp_(parameter, 1 - decay)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trained = {name: parameter.detach().clone() for name, parameter in _floats(pl_module)}
        self._put_(pl_module, self.averages)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._put_(pl_module, self._trained)
        self._trained = {}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self._put_(pl_module, self.averages)

    @torch.no_grad()
    def _put_(self, module: L.LightningModule, values: dict[str, Tensor]) -> None:
        for name, parameter in _floats(module):
            parameter.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        return dict(self.averages)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.averages = dict(state_dict)


def _floats(module: L.LightningModule) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that are trained and not quantized, by name; the same objects throughout a stage."""
    assert isinstance(module, QuantModule)
    quantized = {id(parameter) for _, parameter, _ in module.network.quantizers()}
    for name, parameter in module.network.named_parameters():
        if parameter.requires_grad and id(parameter) not in quantized:
            yield name, parameter
