"""Quantizers: each owns the latents of one tensor and says what the tensor is. One method, one file."""

from bsq_lightning.quantizers.activation import PACT, ActivationQuantizer, ReLU6Quantizer, relu6_or_pact
from bsq_lightning.quantizers.base import Adjustment, LatentRate, LatentStep, WeightQuantizer
from bsq_lightning.quantizers.bit_plane import BitPlaneQuantizer
from bsq_lightning.quantizers.cpq import CPQQuantizer
from bsq_lightning.quantizers.csq import CSQQuantizer
from bsq_lightning.quantizers.fixed_point import FixedPointQuantizer
from bsq_lightning.quantizers.held import HeldTensor
from bsq_lightning.quantizers.latent import LatentQuantizer

__all__ = [
    "PACT",
    "ActivationQuantizer",
    "Adjustment",
    "BitPlaneQuantizer",
    "CPQQuantizer",
    "CSQQuantizer",
    "FixedPointQuantizer",
    "HeldTensor",
    "LatentQuantizer",
    "LatentRate",
    "LatentStep",
    "ReLU6Quantizer",
    "WeightQuantizer",
    "relu6_or_pact",
]
