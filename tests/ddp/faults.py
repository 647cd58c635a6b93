"""What goes wrong, at a step that a test chooses: a callback, put into the config of a run."""

import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L

from bsq_lightning.data import DigitsDataModule
from bsq_lightning.data.base import ImageSets
from bsq_lightning.module import QuantModule

HERE = "+callbacks.fault._target_=tests.ddp.faults.Fault"


def at(what: str, *, stage: str = "bits", epoch: int = 1, batch: int = 1, rank: int = 0, **more: Any) -> list[str]:
    """The overrides that let it happen."""
    keys = {"what": what, "stage": stage, "epoch": epoch, "batch": batch, "rank": rank, **more}
    return [HERE, *(f"+callbacks.fault.{key}={value}" for key, value in keys.items())]


class Fault(L.Callback):
    """Lets something happen after a batch of one rank, once if ``once`` names a file that is not there yet."""

    def __init__(
        self, what: str, stage: str, epoch: int, batch: int, rank: int = 0, path: str = "", once: str = ""
    ) -> None:
        self.what, self.when, self.rank = what, (stage, epoch, batch), rank
        self.path, self.once = path, once

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, QuantModule)
        if (pl_module.stage, trainer.current_epoch, batch_idx) != self.when or trainer.global_rank != self.rank:
            return
        if self.once:
            if os.path.exists(self.once):
                return
            Path(self.once).touch()
        getattr(self, self.what)(pl_module)

    def fail(self, module: QuantModule) -> None:
        raise ValueError("a fault on purpose")

    def kill(self, module: QuantModule) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def terminate(self, module: QuantModule) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def user1(self, module: QuantModule) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)

    def user2(self, module: QuantModule) -> None:
        os.kill(os.getpid(), signal.SIGUSR2)

    def drift(self, module: QuantModule) -> None:
        """The planes of this rank alone move a little, by less than any code notices."""
        for _, _, quantizer in module.network.quantizers():
            quantizer.planes.data.mul_(1 - 1e-6)  # pyright: ignore

    def vanish(self, module: QuantModule) -> None:
        shutil.move(self.path, self.path + ".away")

    def jump(self, module: QuantModule) -> None:
        """The wall clock of this process goes back by a day."""
        real = time.time
        time.time = lambda: real() - 86400


class KilledWhileWriting(L.Callback):
    """The process dies with half of the second checkpoint of a stage on the disk."""

    def __init__(self, stage: str) -> None:
        self.stage = stage

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        if (pl_module.stage, trainer.current_epoch) != (self.stage, 1):
            return
        real = os.fsync

        def fsync(number: int) -> None:
            if os.readlink(f"/proc/self/fd/{number}").rpartition("/")[2].startswith(".last.ckpt."):
                os.truncate(number, os.fstat(number).st_size // 2)
                os.kill(os.getpid(), signal.SIGKILL)
            real(number)

        os.fsync = fsync


class OtherDigits(DigitsDataModule):
    """One rank has an image that the others do not have."""

    def __init__(self, rank: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rank = rank

    def load_images(self) -> ImageSets:
        sets = super().load_images()
        if int(os.environ.get("RANK", "0")) == self.rank:
            sets.test.images[0, 0, 8, 8] ^= 1  # pyright: ignore
        return sets
