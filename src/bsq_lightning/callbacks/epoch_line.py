"""What a person sees while it trains."""

import logging

import lightning as L

from bsq_lightning.module import QuantModule

log = logging.getLogger(__name__)


class EpochLine(L.Callback):
    """One line an epoch: losses, accuracies, mean bits and compression."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        scheme = pl_module.network.scheme() if pl_module.network.names() else None
        # On every rank: what is logged is put together from all of them when it is first asked for.
        metrics = {key: float(value) for key, value in trainer.callback_metrics.items()}
        if not trainer.is_global_zero:
            return
        parts = [f"{pl_module.stage} {trainer.current_epoch + 1}/{trainer.max_epochs}"]
        parts += [f"{name} {metrics[name]:.4f}" for name in ("train/loss", "train/penalty") if name in metrics]
        parts += [f"{name} {100 * metrics[name]:.2f} %" for name in ("train/acc", "val/acc") if name in metrics]
        if scheme is not None:
            parts.append(f"{scheme.mean_precision:.2f} bits, {scheme.compression('paper'):.2f} x")
        log.info("%s", " | ".join(parts))
