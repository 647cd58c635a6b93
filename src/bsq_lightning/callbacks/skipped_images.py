"""Says how many images of a run were left out because they cannot be decoded."""

import logging

import lightning as L

from bsq_lightning.data import ImageFolderDataModule
from bsq_lightning.distributed import largest_over_ranks_

log = logging.getLogger(__name__)


class SkippedImages(L.Callback):
    """At the end of every epoch, brings together what the ranks had to skip, and says how many files that is so far.

    Only with ``data.broken_images=skip``. Each file was named in a warning of its own when it was found.
    """

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, ImageFolderDataModule) or data.broken_images != "skip":
            return
        data.merge_skipped_(lambda marks: largest_over_ranks_(marks.to(pl_module.device)).cpu())
        count = len(data.skipped_images)
        if count and trainer.is_global_zero:
            log.warning("broken images left out since this start of the run: %d", count)
