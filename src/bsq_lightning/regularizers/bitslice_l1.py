"""Bit-slice L1 (arXiv 1909.08496): the sum of the base-4 digits of the codes."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bsq_lightning.ops.bit_slices import slice_count, slices
from bsq_lightning.ops.uniform import sum_like
from bsq_lightning.quantizers import LatentStep, WeightQuantizer
from bsq_lightning.regularizers.base import Regularizer


class BitsliceL1(Regularizer):
    """``alpha / (4 N) * sum_w (b3 + b2 + b1 + b0)`` with ``|code| = 64 b3 + 16 b2 + 4 b1 + b0``, N weights in all.

    Straight through floor and rounding, with the higher digits held fixed inside the lower ones, as in the authors'
    code (github.com/zjysteven/bitslice_sparsity): dR/dw = sign(w) / step * ([b3 > 0] / 64 + [b2 > 0] / 16 +
    [b1 > 0] / 4 + [b0 > 0]). A weight is drawn to the next code whose low slices are zero, and stays there.

    It acts on W, so it goes with every quantizer: fixed point as in the paper, and bit planes, where it reaches the
    planes through their own gradients. R knows codes only, so a scale that is trained beside them feels nothing of it
    (left to itself, G would reach the scale: on digits it took bit planes from 95 to 48 % in four epochs). Its alpha
    means something else than that of plain L1: divided by 4 N, and by the step.

    Args:
        alpha: strength.
        bits: bits that are cut into slices; larger codes count as ``2^bits - 1``.
        slice_bits: bits of one slice; 1 gives the number of ones in the codes.

    Raises:
        ValueError: no whole number of bits.

    Example:
        >>> from bsq_lightning.quantizers import FixedPointQuantizer
        >>> quantizer = FixedPointQuantizer(torch.tensor([255.0, 17.0]))  # 3333 and 0101 to the base 4
        >>> float(BitsliceL1(alpha=1.0).weight_penalty({"fc": quantizer.weight()}, {"fc": quantizer}))
        1.75
    """

    on_weights = True

    def __init__(self, alpha: float, bits: int = 8, slice_bits: int = 2) -> None:
        super().__init__(alpha)
        for name, value in (("bits", bits), ("slice_bits", slice_bits)):
            if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 16:
                raise ValueError(f"reg.{name} must be a whole number of bits from 1 to 16, not {value!r}")
        self.bits, self.slice_bits = bits, slice_bits

    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        if not quantizers:
            raise ValueError("reg=bitslice_l1 acts on codes, and nothing is quantized here")

    def add_gradient_(self, steps: Mapping[str, LatentStep]) -> Tensor:
        """Adds to G, and takes what this does to a trained scale, ``sum(dR/dW W) / scale``, back."""
        before = {name: step.grad for name, step in steps.items()}
        penalty = super().add_gradient_(steps)
        for name, step in steps.items():
            *others, last = [*step.quantizer.latents()] or [None]
            if others and last is getattr(step.quantizer, "scale", None):
                leaked = sum_like((step.grad - before[name]) * step.weight, last.detach()) / last.detach().clamp_min(
                    1e-8
                )
                zeros = [latent.new_zeros(()).expand_as(latent) for latent in others]  # of no size
                step.penalty_gradients = (*zeros, -leaked)
        return penalty

    def weight_penalty(self, weights: Mapping[str, Tensor], quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        terms = [self._digits(weight, quantizers[name]) for name, weight in weights.items()]
        elements = sum(weight.numel() for weight in weights.values()) * slice_count(self.bits, self.slice_bits)
        return self.alpha / elements * torch.stack(terms).sum()

    def _digits(self, weight: Tensor, quantizer: WeightQuantizer) -> Tensor:
        with torch.no_grad():
            digits = slices(quantizer.codes(), self.bits, self.slice_bits)
            step = quantizer.step()
            slope = torch.zeros_like(weight)
            for k, digit in enumerate(digits):
                slope.add_(digit != 0, alpha=2.0 ** (-k * self.slice_bits))
            slope /= torch.where(step == 0, 1.0, step)  # 0 bits: nothing is pressed
            size = digits.sum().to(weight.dtype)
        magnitude = weight.abs()
        return size + (slope * (magnitude - magnitude.detach())).sum()
