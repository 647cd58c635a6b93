"""Fixes the ranges of activations at the end of a stage."""

import lightning as L

from bsq_lightning.data import ImageDataModule
from bsq_lightning.module import QuantModule, measuring


class RangeCalibration(L.Callback):
    """After the last epoch, records each activation's largest value over N unaugmented training batches.

    From then on evaluation uses these ranges, so that accuracy does not depend on how test images are batched. The
    2021 code takes the range of every test batch instead: ``num_batches=0``.

    Args:
        num_batches: training batches to look at; 0 keeps the batch's own range.

    Raises:
        TypeError: at the start of a fit that quantizes activations and whose data has no ``calibration_dataloader()``.
    """

    def __init__(self, num_batches: int = 10) -> None:
        if num_batches < 0:
            raise ValueError(f"calibration needs a number of batches that is not negative, not {num_batches}")
        self.num_batches = num_batches

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self._calibrates(pl_module) and not hasattr(data, "calibration_dataloader"):
            raise TypeError(
                "RangeCalibration looks at training images without augmentation, in a fixed order: it needs a data "
                "module with calibration_dataloader(), as bsq_lightning.data.ImageDataModule has it, not "
                f"{type(data).__name__}; without one leave it out and call bsq_lightning.calibrate(module.network, "
                "batches) after the fit"
            )

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch + 1 == trainer.max_epochs:
            self.calibrate_(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def _calibrates(self, module: QuantModule) -> bool:
        return bool(self.num_batches and module.network.act_precision)

    def calibrate_(self, module: L.LightningModule, datamodule: ImageDataModule) -> None:
        """Records the ranges now, in float32."""
        assert isinstance(module, QuantModule)
        if not self._calibrates(module):
            return
        batches = zip(range(self.num_batches), datamodule.calibration_dataloader(), strict=False)
        with measuring(module), module.network.observing():
            for _, (images, _labels) in batches:
                module(images.to(module.device, next(module.parameters()).dtype))
