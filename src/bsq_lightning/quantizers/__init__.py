"""Quantizers: each owns the latents of one tensor and says what the tensor is. One method, one file."""

from bsq_lightning.quantizers.activation import PACT, ActivationQuantizer, ReLU6Quantizer, relu6_or_pact
from bsq_lightning.quantizers.allocated import AllocatedQuantizer
from bsq_lightning.quantizers.base import Adjustment, LatentRate, LatentStep, WeightQuantizer
from bsq_lightning.quantizers.bit_plane import BitPlaneQuantizer
from bsq_lightning.quantizers.cpq import CPQQuantizer
from bsq_lightning.quantizers.csq import CSQQuantizer
from bsq_lightning.quantizers.dorefa import DoReFaQuantizer
from bsq_lightning.quantizers.filter_bits import FilterQuantizer
from bsq_lightning.quantizers.fixed_point import FixedPointQuantizer
from bsq_lightning.quantizers.held import HeldTensor
from bsq_lightning.quantizers.latent import LatentQuantizer
from bsq_lightning.quantizers.lsq import LSQQuantizer
from bsq_lightning.quantizers.msq import MSQQuantizer
from bsq_lightning.quantizers.swis import SWISQuantizer

__all__ = [
    "ActivationQuantizer",
    "Adjustment",
    "AllocatedQuantizer",
    "BitPlaneQuantizer",
    "CPQQuantizer",
    "CSQQuantizer",
    "DoReFaQuantizer",
    "FilterQuantizer",
    "FixedPointQuantizer",
    "HeldTensor",
    "LSQQuantizer",
    "LatentQuantizer",
    "LatentRate",
    "LatentStep",
    "MSQQuantizer",
    "PACT",
    "ReLU6Quantizer",
    "SWISQuantizer",
    "WeightQuantizer",
    "relu6_or_pact",
]
