"""One line at the bottom of the terminal while a run trains."""

import sys
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from tqdm import tqdm

from bsq_lightning.module import QuantModule

#: Seconds between two looks at the metrics, which reads the device.
INTERVAL = 0.5


class RunBar(ProgressBar):
    """Stage, loss, accuracies, bits and compression, and the time left of the whole run.

    Epochs count as in the log, from 1. Loss and training accuracy are those of the epoch so far (of the last whole one
    on several devices, where one rank cannot ask alone), validation accuracy, bits and compression of the last epoch.
    The time left takes this stage's seconds per step, validation and adjustments included, for all stages to come.

    Args:
        epochs: of each stage that this start trains, in order.
        stage: the one whose Trainer this is for.
    """

    def __init__(self, epochs: Mapping[str, int], stage: str) -> None:
        super().__init__()
        self.epochs = dict(epochs)
        names = list(self.epochs)
        self.before = sum(self.epochs[name] for name in names[: names.index(stage)])
        self.bar: tqdm[Any] | None = None
        self._enabled = True
        self._begun = False
        self._looked = 0.0
        self._metrics: dict[str, float] = {}
        self._size = ""

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._enabled or not trainer.is_global_zero:
            return
        steps = int(trainer.num_training_batches)
        self.bar = tqdm(
            total=sum(self.epochs.values()) * steps,
            smoothing=0,
            leave=False,
            dynamic_ncols=True,
            file=sys.stdout,
            bar_format="{percentage:3.0f} %, {remaining} left | {desc} {bar}",
        )
        self._measure(pl_module)
        self._begun = False
        self._show(trainer, pl_module, 0)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar is None:
            return
        if not self._begun:  # where in an epoch a run goes on is known only now
            self._begun, self.bar.initial = True, self._done(trainer, batch_idx)
        if time.monotonic() - self._looked < INTERVAL:
            return
        assert isinstance(pl_module, QuantModule)
        if trainer.world_size == 1:
            for name in ("loss", "acc"):
                self._metrics[f"train/{name}"] = float(pl_module.metric(f"train_{name}").compute())
        self._show(trainer, pl_module, batch_idx + 1)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # On every rank: what is logged is put together from all of them when it is first asked for.
        self._metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        if self.bar is not None:
            self._measure(pl_module)
            self._show(trainer, pl_module, int(trainer.num_training_batches))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _done(self, trainer: L.Trainer, within: int) -> int:
        """Batches of all stages so far, ``within`` of them in this epoch."""
        return (self.before + trainer.current_epoch) * int(trainer.num_training_batches) + within

    def _measure(self, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        if pl_module.network.names():
            scheme = pl_module.network.scheme()
            self._size = f" {scheme.mean_precision:.2f} bits {scheme.compression('paper'):.1f} x"

    def _show(self, trainer: L.Trainer, pl_module: L.LightningModule, within: int) -> None:
        assert self.bar is not None and isinstance(pl_module, QuantModule)
        self._looked = time.monotonic()
        text = f"{pl_module.stage} {trainer.current_epoch + 1}/{trainer.max_epochs}"
        metrics = self._metrics
        text += f" loss {metrics['train/loss']:.4f}" if "train/loss" in metrics else ""
        accuracies = [f"{100 * metrics[key]:.1f} {key[:-4]}" for key in ("train/acc", "val/acc") if key in metrics]
        text += f" acc {', '.join(accuracies)}" if accuracies else ""
        self.bar.set_description_str(text + self._size, refresh=False)
        self.bar.n = self._done(trainer, within)
        self.bar.refresh()
