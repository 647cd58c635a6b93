"""Keeps the run folder: one row of metrics an epoch and the newest scheme."""

import time
from pathlib import Path

import lightning as L

from bsq_lightning.module import QuantModule
from bsq_lightning.run_folder import COLUMNS, RunFolder


class RunRecorder(L.Callback):
    """Appends to ``metrics.csv`` and rewrites ``scheme.json`` at the end of every training epoch.

    Lightning's CSVLogger deletes the file of the previous fit; a run of ours has one fit for each stage, so the rows
    carry their stage and are appended. When a run resumes, rows past its checkpoint are cut.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = RunFolder(Path(folder))
        self.started = 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        self.started = time.monotonic()  # an epoch that goes on in its middle has no start
        if trainer.is_global_zero:
            self.folder.cut_metrics(pl_module.stage, trainer.current_epoch)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.monotonic()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        scheme = pl_module.network.scheme()
        # On every rank: what is logged is put together from all of them when it is first asked for.
        row = {key: float(value) for key, value in trainer.callback_metrics.items() if key in COLUMNS}
        if not trainer.is_global_zero:
            return
        self.folder.add_metrics(row | {
            "stage": pl_module.stage,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
            "mean_precision": scheme.mean_precision,
            "compression_paper": scheme.compression("paper"),
            "compression_signed": scheme.compression("signed"),
            "compression_model": scheme.compression("model"),
            "seconds": round(time.monotonic() - self.started, 3),
        })  # fmt: skip
        if scheme.layers:
            self.folder.write_scheme(scheme.to_json())
        if damage := pl_module.damage():
            losses = {name: each.loss for name, each in damage.items()}
            self.folder.write_damage(pl_module.stage, trainer.current_epoch, losses)
