"""A hook that Lightning does not have: after an optimizer step, and not after a batch that is accumulated."""

from abc import ABC, abstractmethod
from typing import Any

import lightning as L

from bsq_lightning.module import QuantModule


class EachStep(L.Callback, ABC):
    """Calls ``after_step`` behind every optimizer step of a fit; ``trainer.global_step`` counts it already."""

    _before = 0

    @abstractmethod
    def after_step(self, trainer: L.Trainer, module: QuantModule, batch: Any) -> None:
        """What is done after a step.

        Args:
            trainer: the trainer.
            module: what it trains.
            batch: the last of those whose gradients were accumulated.
        """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._before = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step != self._before:
            assert isinstance(pl_module, QuantModule)
            self.after_step(trainer, pl_module, batch)
