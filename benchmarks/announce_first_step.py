"""For first_step: a callback in the training process, which must not import more than a training does."""

from typing import Any

import lightning as L

FIRST_STEP = "first training step begins"


class AnnounceFirstStep(L.Callback):
    """Says so when the first batch is there."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 0:
            print(FIRST_STEP, flush=True)
