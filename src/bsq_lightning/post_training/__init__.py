"""Quantization of a trained network without training: each method is a callable on one weight."""

from bsq_lightning.ops.batch_norm import fold_batch_norm_
from bsq_lightning.post_training.base import PostTrainingMethod, output_errors
from bsq_lightning.post_training.layer_inputs import layer_inputs
from bsq_lightning.post_training.multipoint import Multipoint
from bsq_lightning.post_training.network import quantize_
from bsq_lightning.post_training.round import Round
from bsq_lightning.post_training.schedule import Schedule, schedule_filters
from bsq_lightning.post_training.swis import SWIS
from bsq_lightning.post_training.truncate import Truncate

__all__ = [
    "SWIS",
    "Multipoint",
    "PostTrainingMethod",
    "Round",
    "Schedule",
    "Truncate",
    "fold_batch_norm_",
    "layer_inputs",
    "output_errors",
    "quantize_",
    "schedule_filters",
]
