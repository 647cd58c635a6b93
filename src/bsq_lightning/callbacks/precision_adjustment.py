"""The periodic precision adjustment of BSQ, with its audit."""

import json
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torchmetrics.classification import MulticlassAccuracy

from bsq_lightning.files import append_line, cut_lines
from bsq_lightning.module import STAGES, QuantModule, evaluating
from bsq_lightning.ops.bit_planes import plane_squares
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer

log = logging.getLogger(__name__)
LARGEST_CHANGE = 1e-6


class PrecisionAdjustment(L.Callback):
    """Every k epochs and after the last one: re-quantize, trim, forget the momentum of all parameters.

    It works at the end of the training epoch, before recorder and checkpoint, so that what is on disk is what is
    live. Every adjustment is audited: the largest relative change of a weight (an error above 1e-6, unless the
    quantizer repeats the 2021 code's jump), validation accuracy before and after, bits saved, layers touched, and
    the norms of the planes. One line goes to the log, one row to ``adjustments.jsonl``.

    Args:
        every_n_epochs: the interval k.
        folder: run folder; None writes nothing.

    Raises:
        ValueError: the interval is not a positive whole number.
    """

    def __init__(self, every_n_epochs: int, folder: str | None = None) -> None:
        if isinstance(every_n_epochs, bool) or not isinstance(every_n_epochs, int) or every_n_epochs < 1:
            raise ValueError(f"the adjustment interval must be a positive number of epochs, not {every_n_epochs!r}")
        self.every_n_epochs = every_n_epochs
        self.path = Path(folder) / "adjustments.jsonl" if folder else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.path and trainer.is_global_zero and isinstance(pl_module, QuantModule) and pl_module.stage == "bits":
            epoch = trainer.current_epoch
            cut_lines(self.path, lambda line: json.loads(line)["epoch"] < epoch)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        epoch = trainer.current_epoch + 1
        if pl_module.stage != STAGES[1] or (epoch % self.every_n_epochs and epoch != trainer.max_epochs):
            return
        network = pl_module.network
        before = network.scheme()
        norms = _plane_norms(pl_module)
        old = [parameter.detach().clone() for _, parameter, _ in network.quantizers()]
        accuracy = trainer.callback_metrics.get("val/acc")
        network.adjust_precision_()
        change, worst = _largest_change(pl_module, old)
        optimizer = pl_module.optimizers(use_pl_optimizer=False)
        assert isinstance(optimizer, LatentOptimizer)
        optimizer.forget_momentum_()
        after = network.scheme()
        accuracy_after = _accuracy(trainer, pl_module)

        was, now = before.precisions(), after.precisions()
        touched = [name for name in now if now[name] != was[name]]
        row = {
            "epoch": trainer.current_epoch,
            "largest_relative_change": change,
            "acc_before": None if accuracy is None else float(accuracy),
            "acc_after": accuracy_after,
            "bits_before": before.bits("paper"),
            "bits_after": after.bits("paper"),
            "mean_precision_after": after.mean_precision,
            "kilobytes_after": after.bits("model") / 8000,
            "gbops_after": after.gbops,
            "layers": {name: {"from": was[name], "to": now[name], "plane_norms": norms[name]} for name in now},
        }
        if self.path and trainer.is_global_zero:
            append_line(self.path, json.dumps(row))
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
            log.warning("nothing moved at this adjustment: normal at alpha=0, else raise alpha or the interval")
        if change > LARGEST_CHANGE:
            message = f"the adjustment moved a weight of {worst} by {change:.1e} relative"
            if isinstance(network.quantizer(worst), BitPlaneQuantizer) and network.quantizer(worst).clip_always:
                log.warning("%s (the 2021 code's clip against growth, which this quantizer repeats)", message)
            else:
                raise RuntimeError(
                    f"{message}; it must not exceed {LARGEST_CHANGE}. This is a defect, please report it"
                )


def _plane_norms(module: QuantModule) -> dict[str, list[float]]:
    return {
        name: [round(float(norm), 4) for norm in plane_squares(quantizer.planes).sqrt()]
        for name, _, quantizer in module.network.quantizers()
        if isinstance(quantizer, BitPlaneQuantizer)
    }


def _largest_change(module: QuantModule, old: list[torch.Tensor]) -> tuple[float, str]:
    """Largest |new - old| / |old| over all weights (infinite where a zero moved), and the tensor it is in."""
    worst = (0.0, "")
    for (name, parameter, _), before in zip(module.network.quantizers(), old, strict=True):
        moved = (parameter.detach() - before).abs()
        relative = torch.where(moved == 0, moved, moved / before.abs())
        worst = max(worst, (float(relative.max()), name))
    return worst


def _accuracy(trainer: L.Trainer, module: QuantModule) -> float | None:
    """Validation accuracy of the live network; validation itself ran before the adjustment."""
    loader: Any = trainer.val_dataloaders
    if loader is None:
        return None
    classes = module.metrics["val_acc"].num_classes  # type: ignore[union-attr]
    metric = MulticlassAccuracy(classes, average="micro").to(module.device)  # type: ignore[arg-type]
    with evaluating(module), trainer.precision_plugin.forward_context():
        for i, batch in enumerate(loader):
            if i >= trainer.num_val_batches[0]:
                break
            images, labels = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch))
            metric.update(module(images), labels)
    return float(metric.compute())
