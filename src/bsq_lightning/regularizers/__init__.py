"""Regularizers: penalties on the latents of quantizers."""

from bsq_lightning.regularizers.base import Regularizer
from bsq_lightning.regularizers.bit_group_lasso import BitGroupLasso
from bsq_lightning.regularizers.csq_budget import CSQBudget

__all__ = ["BitGroupLasso", "CSQBudget", "Regularizer"]
