"""Truncation: all weights of a layer lose the same low bits. The baseline that SWIS is measured against."""

import torch
from torch import Tensor

from bsq_lightning.post_training.base import check_whole
from bsq_lightning.post_training.round import Round
from bsq_lightning.quantized_tensor import QuantizedTensor


class Truncate:
    """Codes of B bits keep their N highest: ``round(|code| / 2^(B-N))``, halves down, at most ``2^N - 1``.

    It is SWIS-C with the one offset B - N for the whole layer (tests/post_training/test_swis.py), so it shares its
    rounding: nearest, and the smaller magnitude of two that are equally near.

    Args:
        precision: bits N that stay, 1 to B.
        bits: bits B of the codes before.
        step: of the codes before, see ``Round``.
        per_channel: a step for each output channel, else one for the tensor.

    Raises:
        ValueError: N or B out of range.

    Example:
        >>> Truncate(1, bits=3, step="max")(torch.tensor([7.0, 3.0, -2.0, -1.0])).dequantize()
        tensor([4., 4., 0., 0.])
    """

    def __init__(self, precision: int, bits: int = 8, step: str = "max", per_channel: bool = False) -> None:
        self.round = Round(check_whole("bits", bits, 1, 16), step, per_channel)
        self.precision = check_whole("precision", precision, 1, bits)

    @torch.no_grad()
    def __call__(self, weight: Tensor, *, inputs: Tensor | None = None) -> QuantizedTensor:
        """Truncates ``weight``; ``inputs`` are not looked at."""
        whole = self.round(weight)
        unit = 2 ** (self.round.precision - self.precision)
        sizes = (2 * whole.codes.abs() + unit - 1) // (2 * unit)
        codes = whole.codes.sign() * sizes.clamp_max(2**self.precision - 1)
        return QuantizedTensor(codes, whole.step * unit, self.precision)
