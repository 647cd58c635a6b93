"""A signal that asks the run to stop: it saves within the epoch and ends; a later start goes on with the next batch."""

import logging
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
import torch

from bsq_lightning.distributed import largest_over_ranks_
from bsq_lightning.module import QuantModule

log = logging.getLogger(__name__)


def name_of(signum: int) -> str:
    """A signal as people call it.

    Example:
        >>> name_of(2), name_of(15)
        ('Ctrl-C', 'SIGTERM')
    """
    return "Ctrl-C" if signum == signal.SIGINT else signal.Signals(signum).name


class Preempted(SystemExit):
    """The run was asked to stop and has saved its state; its exit status is 128 + the signal, as of shells.

    Args:
        signum: the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class Preemption(L.Callback):
    """On a signal, writes ``last.ckpt`` after the current step, with the place in the epoch, and ends the run.

    Schedulers and clusters send SIGTERM, SIGUSR1 or SIGUSR2 some time before they kill, a person presses Ctrl-C
    (SIGINT; pressed again it ends the process at once). The checkpoint holds the
    metrics of the epoch so far and the position in its order of images, so that the run that goes on repeats no image
    and skips none. While it trains, its handlers stand in front of those that were there (Lightning's SIGTERM handler
    starts a collective operation from within the signal handler, which can meet another one); Lightning puts the old
    ones back when the fit ends. A signal that was ignored before the fit stays so: ``nohup`` and ``&`` in a script ask
    for that.

    Args:
        signals: names of the signals.
        every_n_steps: how often the ranks ask each other, a few bytes; a process alone reacts after every step.
        folder: the run folder.

    Raises:
        ValueError: an interval that is not positive, or no such signal.
    """

    def __init__(
        self,
        signals: Sequence[str] = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGUSR2"),
        every_n_steps: int = 10,
        folder: str = ".",
    ) -> None:
        if every_n_steps < 1:
            raise ValueError(f"callbacks.preemption.every_n_steps is positive, not {every_n_steps}")
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f"callbacks.preemption.signals: there is no signal {unknown[0]!r}")
        self.signals = [signal.Signals[name] for name in signals]
        self.every_n_steps = every_n_steps
        self.last = Path(folder) / "checkpoints" / "last.ckpt"
        self._ignored: list[signal.Signals] = []
        self._received = 0
        self._saving: int | None = None

    def _receive(self, signum: int, frame: FrameType | None) -> None:
        if signum == self._received == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self._received = signum

    def _asked(self, trainer: L.Trainer, pl_module: L.LightningModule) -> int:
        """The signal that any rank received, the same answer on all; 0 for none."""
        if trainer.world_size == 1:
            return self._received
        return int(largest_over_ranks_(torch.tensor(self._received, device=pl_module.device)))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # Lightning's handler of SIGTERM, which comes after this, covers what was there.
        self._ignored = [number for number in self.signals if signal.getsignal(number) is signal.SIG_IGN]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        try:
            for number in self.signals:
                signal.signal(number, signal.SIG_IGN if number in self._ignored else self._receive)
        except ValueError:
            log.warning("training outside the main thread: a signal will end it without a checkpoint of the epoch")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        steps, rest = divmod(batch_idx + 1, trainer.accumulate_grad_batches)
        if rest or (trainer.world_size > 1 and steps % self.every_n_steps):
            return
        # The end of the epoch is near then, and its own checkpoint with it.
        if trainer.is_last_batch:
            return
        signum = self._asked(trainer, pl_module)
        if signum:
            self._saving = batch_idx + 1
            trainer.save_checkpoint(self.last)
            log.warning(
                "%s: saved after batch %d of %d of epoch %d; the run can be resumed there",
                name_of(signum), batch_idx + 1, trainer.num_training_batches, trainer.current_epoch + 1,
            )  # fmt: skip
            raise Preempted(signum)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_between_epochs(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_between_epochs(trainer, pl_module)

    def _stop_between_epochs(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        signum = self._asked(trainer, pl_module)
        if signum:
            log.warning("%s: stopped after the checkpoint of the last epoch", name_of(signum))
            raise Preempted(signum)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._saving is not None:
            assert isinstance(pl_module, QuantModule)
            metrics = pl_module.training_metrics()
            checkpoint["within_epoch"] = {"batches": self._saving, "metrics": metrics}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if "within_epoch" in checkpoint:
            assert isinstance(pl_module, QuantModule)
            pl_module.continue_training_metrics(checkpoint["within_epoch"]["metrics"])
