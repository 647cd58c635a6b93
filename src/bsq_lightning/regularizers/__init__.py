"""Regularizers: penalties on the latents of quantizers."""

from bsq_lightning.regularizers.base import Regularizer
from bsq_lightning.regularizers.bit_group_lasso import BitGroupLasso

__all__ = ["BitGroupLasso", "Regularizer"]
