"""The periodic precision adjustment of a stage, with its audit; it knows no method."""

import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torchmetrics.classification import MulticlassAccuracy

from bsq_lightning.callbacks.batch_statistics import measure_again_
from bsq_lightning.module import QuantModule, measuring
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme

log = logging.getLogger(__name__)
LARGEST_CHANGE = 1e-6
FEW_IMAGES = 64


class PrecisionAdjustment(L.Callback):
    """Every k epochs and after the last one, lets every quantizer re-quantize and trim.

    It works at the end of the training epoch, before recorder and checkpoint, so that what is on disk is what is
    live. Momentum of all parameters is dropped where a quantizer asks for it (bit planes do). Every adjustment is
    audited: the largest relative change of a weight (an error above 1e-6, unless the quantizer says why it may move),
    validation accuracy before and after, bits saved, layers touched, what the rounding of each layer cost the loss in
    this epoch (``quantizers/damage.py``), and what each quantizer tells of itself (the norms of planes). One line goes
    to the log, one row to ``adjustments.jsonl``.

    Args:
        every_n_epochs: the interval k; None in a stage that is not adjusted.
        folder: run folder; None writes nothing.

    Raises:
        ValueError: the interval is not a positive whole number.
    """

    def __init__(self, every_n_epochs: int | None, folder: str | None = None) -> None:
        if every_n_epochs is not None and (type(every_n_epochs) is not int or every_n_epochs < 1):
            raise ValueError(f"the adjustment interval must be a positive number of epochs, not {every_n_epochs!r}")
        self.every_n_epochs = every_n_epochs
        self.folder = RunFolder(Path(folder)) if folder else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        if self.folder and trainer.is_global_zero and self.every_n_epochs is not None:
            self.folder.cut_adjustments(pl_module.stage, trainer.current_epoch)
        if self.every_n_epochs is not None and trainer.global_step == 0:  # a resumed run has what was decided
            pl_module.begin_interval(lambda: _training_images(trainer))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        epoch = trainer.current_epoch + 1
        if self.every_n_epochs is None or (epoch % self.every_n_epochs and epoch != trainer.max_epochs):
            return
        network = pl_module.network
        network.hold_weights_()
        before = network.scheme()
        old = [parameter.detach().clone() for _, parameter, _ in network.quantizers()]
        accuracy = trainer.callback_metrics.get("val/acc")
        damage = pl_module.damage()
        done = network.adjust_precision_()
        changes = _largest_changes(pl_module, old)
        if any(each.forget_momentum for each in done.values()):
            optimizer = pl_module.optimizers(use_pl_optimizer=False)
            assert isinstance(optimizer, LatentOptimizer)
            optimizer.forget_momentum_()
        pl_module.begin_interval(lambda: _training_images(trainer))
        after = network.scheme()
        change = max(changes.values(), default=0.0)
        if change > LARGEST_CHANGE:
            measure_again_(trainer, pl_module)
        accuracy_after = _accuracy(trainer, pl_module)

        was, now = before.precisions(), after.precisions()
        touched = [name for name in now if now[name] != was[name]]
        row = {
            "stage": pl_module.stage,
            "epoch": trainer.current_epoch,
            "largest_relative_change": change,
            "acc_before": None if accuracy is None else float(accuracy),
            "acc_after": accuracy_after,
            **sizes_of(before, after),
            "layers": {
                name: {"from": was[name], "to": now[name], **done[name].audit}
                | ({"damage": damage[name].loss} if name in damage else {})
                for name in now
            },
        }
        if self.folder and trainer.is_global_zero:
            self.folder.add_adjustment(row)
        shown = " -> ".join("?" if a is None else f"{100 * a:.2f} %" for a in (row["acc_before"], accuracy_after))
        log.info(
            "adjustment after epoch %d: %.2f -> %.2f bits per weight (%.2f x), %d of %d layers changed, %d bits saved, "
            "accuracy %s, largest relative change of a weight %.1e",
            epoch, before.mean_precision, after.mean_precision, after.compression("paper"), len(touched), len(now),
            before.bits("paper") - after.bits("paper"), shown, change,
        )  # fmt: skip
        for name in touched:
            if now[name] == 0:
                log.warning("layer %s is at 0 bits: it outputs zero from now on and never grows back", name)
        if not touched:
            log.warning(
                "nothing moved at this adjustment: normal at alpha=0 and once a target of size is met, else raise "
                "alpha or the interval"
            )
        moved = {name: change for name, change in changes.items() if change > LARGEST_CHANGE}
        for name, change in moved.items():
            if not done[name].may_move:
                raise RuntimeError(
                    f"the adjustment moved a weight of {name} by {change:.1e} relative; it must not exceed "
                    f"{LARGEST_CHANGE}. This is a defect, please report it"
                )
        for reason in dict.fromkeys(done[name].may_move for name in moved):
            names = [name for name in moved if done[name].may_move == reason]
            log.warning(
                "the adjustment moved weights of %s by up to %.1e relative (%s)",
                f"{names[0]} and {len(names) - 1} more" if len(names) > 1 else names[0],
                max(moved[name] for name in names),
                reason,
            )


def sizes_of(before: Scheme, after: Scheme) -> dict[str, Any]:
    """What a row of ``adjustments.jsonl`` says of sizes, whatever changed the bits."""
    return {
        "bits_before": before.bits("paper"),
        "bits_after": after.bits("paper"),
        "mean_precision_after": after.mean_precision,
        "kilobytes_after": after.bits("model") / 8000,
        "gbops_after": after.gbops,
    }


def _largest_changes(module: QuantModule, old: list[torch.Tensor]) -> dict[str, float]:
    """Largest |new - old| / |old| of each tensor's weights (infinite where a zero moved)."""
    changes = {}
    for (name, parameter, _), before in zip(module.network.quantizers(), old, strict=True):
        moved = (parameter.detach() - before).abs()
        relative = torch.where(moved == 0, moved, moved / before.abs())
        changes[name] = float(relative.max())
    return changes


def _training_images(trainer: L.Trainer) -> Any:
    """The same few training images on every rank, at every call."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    images = data.trial_batch(FEW_IMAGES)
    return trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(images))


def _accuracy(trainer: L.Trainer, module: QuantModule) -> float | None:
    """Validation accuracy of the live network; validation itself ran before the adjustment."""
    loader: Any = trainer.val_dataloaders
    if loader is None:
        return None
    classes = module.metrics["val_acc"].num_classes  # type: ignore[union-attr]
    metric = MulticlassAccuracy(classes, average="micro").to(module.device)  # type: ignore[arg-type]
    with measuring(module), trainer.precision_plugin.forward_context():
        for i, batch in enumerate(loader):
            if i >= trainer.num_val_batches[0]:
                break
            images, labels = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            metric.update(module(images), labels)
    return float(metric.compute())
