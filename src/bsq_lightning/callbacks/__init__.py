"""Callbacks. Their order is meaning: adjust, calibrate, record, then write the checkpoint."""

from bsq_lightning.callbacks.batch_statistics import BatchStatistics
from bsq_lightning.callbacks.epoch_line import EpochLine
from bsq_lightning.callbacks.float_average import FloatAverage
from bsq_lightning.callbacks.oscillation_freezing import OscillationFreezing
from bsq_lightning.callbacks.precision_adjustment import PrecisionAdjustment
from bsq_lightning.callbacks.precision_allocation import PrecisionAllocation
from bsq_lightning.callbacks.preemption import Preempted, Preemption
from bsq_lightning.callbacks.range_calibration import RangeCalibration
from bsq_lightning.callbacks.rank_agreement import RankAgreement, RankMismatchError
from bsq_lightning.callbacks.run_bar import RunBar
from bsq_lightning.callbacks.run_recorder import RunRecorder
from bsq_lightning.callbacks.skipped_images import SkippedImages

__all__ = [
    "BatchStatistics",
    "EpochLine",
    "FloatAverage",
    "OscillationFreezing",
    "PrecisionAdjustment",
    "PrecisionAllocation",
    "Preempted",
    "Preemption",
    "RangeCalibration",
    "RankAgreement",
    "RankMismatchError",
    "RunBar",
    "RunRecorder",
    "SkippedImages",
]
