"""Callbacks. Their order is meaning: adjust, calibrate, record, then write the checkpoint."""

from bsq_lightning.callbacks.atomic_checkpoint_io import AtomicCheckpointIO, load_checkpoint
from bsq_lightning.callbacks.epoch_line import EpochLine
from bsq_lightning.callbacks.precision_adjustment import PrecisionAdjustment
from bsq_lightning.callbacks.range_calibration import RangeCalibration
from bsq_lightning.callbacks.run_recorder import RunRecorder

__all__ = [
    "AtomicCheckpointIO",
    "EpochLine",
    "PrecisionAdjustment",
    "RangeCalibration",
    "RunRecorder",
    "load_checkpoint",
]
