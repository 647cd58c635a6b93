"""Bits that are exchanged between layers while they train."""

import logging
from pathlib import Path
from typing import Any, Protocol

import lightning as L

from bsq_lightning.callbacks.each_step import EachStep
from bsq_lightning.callbacks.precision_adjustment import sizes_of
from bsq_lightning.module import QuantModule
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import WeightQuantizer
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme

log = logging.getLogger(__name__)


class Allocator(Protocol):
    """What decides (``sensitivity/water_filling.py``): so many exchanges, so many steps apart."""

    exchanges: int

    def interval(self, steps: int) -> int: ...
    def check(self, quantizers: Any, steps: int) -> None: ...
    def exchange(self, number: int, quantizers: Any, damage: Any, images: int) -> dict[str, Any]: ...
    def state_dict(self) -> dict[str, Any]: ...
    def load_state_dict(self, state: Any) -> None: ...


class PrecisionAllocation(EachStep):
    """Asks an allocator for bits at even intervals of optimizer steps, gives them to the quantizers and writes a row of
    ``adjustments.jsonl`` for each exchange that changed any; after the last exchange the bits are final.

    It stands in front of what saves, so that a checkpoint within an epoch holds what is live; its own state is in the
    checkpoint, and a run that resumes between two exchanges decides as the one that was never stopped.

    Args:
        allocator: decides.
        folder: run folder; None writes nothing.
    """

    def __init__(self, allocator: Allocator, folder: str | None = None) -> None:
        self.allocator = allocator
        self.folder = RunFolder(Path(folder)) if folder else None

    def check(self, module: QuantModule, steps: int) -> None:
        """Before training, for a stage of so many optimizer steps.

        Raises:
            ValueError: the allocator cannot do what it is asked to, with the setting to change.
        """
        self.allocator.check(_quantizers(module), steps)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        _optimizer(pl_module).damage.every = 1
        if trainer.global_step == 0:
            self.check(pl_module, int(trainer.estimated_stepping_batches))
        if self.folder and trainer.is_global_zero:
            self.folder.cut_adjustments(pl_module.stage, trainer.current_epoch, trainer.global_step)

    def after_step(self, trainer: L.Trainer, module: QuantModule, batch: Any) -> None:
        number, rest = divmod(trainer.global_step, self.allocator.interval(int(trainer.estimated_stepping_batches)))
        if rest or number > self.allocator.exchanges:
            return
        network, quantizers = module.network, _quantizers(module)
        whole = trainer.datamodule.batch_size  # type: ignore[attr-defined]  # the last of an epoch may differ by rank
        images = whole * trainer.accumulate_grad_batches * trainer.world_size
        before = network.scheme()
        bits = self.allocator.exchange(number, quantizers, _optimizer(module).damage, images)
        network.adjust_precision_(bits)
        if bits:
            self._record(trainer, module, before, bits)
        if number == self.allocator.exchanges:
            for quantizer in quantizers.values():
                quantizer.settle_()  # type: ignore[operator]
            now = network.scheme()
            log.info(
                "the bits are final after step %d: %.3f per weight (%.2f x): %s", trainer.global_step,
                now.mean_precision, now.compression("paper"), " ".join(f"{n:.3g}" for n in now.precisions().values()),
            )  # fmt: skip

    def _record(self, trainer: L.Trainer, module: QuantModule, before: Scheme, bits: dict[str, Any]) -> None:
        if not (self.folder and trainer.is_global_zero):
            return
        was, after = before.precisions(), module.network.scheme()
        stored = {layer.name: layer.stored for layer in after.layers if layer.stored}
        curvature = {name: float(h.mean()) for name, h in getattr(self.allocator, "curvature", {}).items()}
        self.folder.add_adjustment({
            "stage": module.stage,
            "epoch": trainer.current_epoch,
            "step": trainer.global_step,
            **sizes_of(before, after),
            "layers": {
                name: {"from": was[name], "to": n}
                | ({"stored": stored[name]} if name in stored else {})
                | ({"curvature": curvature[name]} if name in curvature else {})
                | ({"filters": bits[name]} if isinstance(bits.get(name), list) else {})
                for name, n in after.precisions().items()
            },
        })  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        return self.allocator.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.allocator.load_state_dict(state_dict)


def _quantizers(module: QuantModule) -> dict[str, WeightQuantizer]:
    return {name: quantizer for name, _, quantizer in module.network.quantizers()}


def _optimizer(module: QuantModule) -> LatentOptimizer:
    optimizer = module.optimizers(use_pl_optimizer=False)
    assert isinstance(optimizer, LatentOptimizer)
    return optimizer
