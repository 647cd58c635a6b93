"""Regularizers: penalties on the latents of quantizers, or on the weights."""

from bsq_lightning.regularizers.base import Regularizer
from bsq_lightning.regularizers.bit_group_lasso import BitGroupLasso
from bsq_lightning.regularizers.bitslice_l1 import BitsliceL1
from bsq_lightning.regularizers.csq_budget import CSQBudget
from bsq_lightning.regularizers.dropbits_l0 import DropBitsL0
from bsq_lightning.regularizers.l1 import L1
from bsq_lightning.regularizers.msq_lsb import LowestBitsL1

__all__ = ["L1", "BitGroupLasso", "BitsliceL1", "CSQBudget", "DropBitsL0", "LowestBitsL1", "Regularizer"]
