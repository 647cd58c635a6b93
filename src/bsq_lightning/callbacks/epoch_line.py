"""What a person sees while it trains."""

import logging

import lightning as L

from bsq_lightning.module import QuantModule

log = logging.getLogger(__name__)


class EpochLine(L.Callback):
    """Mean bits and compression in the progress bar; one line an epoch where there is no bar."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        # Precisions only change between epochs, so two numbers an epoch are enough and no step waits for them.
        if batch_idx == 0 and isinstance(pl_module, QuantModule) and pl_module.network.names():
            scheme = pl_module.network.scheme()
            pl_module.log("bits", scheme.mean_precision, on_step=True, on_epoch=False, prog_bar=True, logger=False)
            pl_module.log(
                "comp", scheme.compression("paper"), on_step=True, on_epoch=False, prog_bar=True, logger=False
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # On every rank: what is logged is put together from all of them when it is first asked for.
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        if trainer.progress_bar_callback is not None or not trainer.is_global_zero:
            return
        assert isinstance(pl_module, QuantModule)
        parts = [f"{pl_module.stage} {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        parts += [f"{name} {metrics[name]:.4f}" for name in ("train/loss", "train/penalty") if name in metrics]
        parts += [f"{name} {100 * metrics[name]:.2f} %" for name in ("train/acc", "val/acc") if name in metrics]
        if pl_module.network.names():
            scheme = pl_module.network.scheme()
            parts.append(f"{scheme.mean_precision:.2f} bits, {scheme.compression('paper'):.2f} x")
        log.info("%s", " | ".join(parts))
