"""CSQ's budget (arXiv 2212.02770; equation as in the authors' code, github.com/lawsonX/CSQ)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bsq_lightning.quantizers import CSQQuantizer, WeightQuantizer
from bsq_lightning.regularizers.base import Regularizer

WEIGHTINGS = ("parameters", "layers")


class CSQBudget(Regularizer):
    """``alpha * (bits - target_bits) / N * sum_l w_l sum_b f(m_lb)``: presses planes out above the budget, in below it.

    ``bits`` counts the planes that are in, a constant for the gradient, so the factor before the sum has a sign. With
    ``weighting=parameters`` bits are the mean over weights and w_l is the layer's share of the weights times the
    number of layers: a budget of size, and pressure in proportion to it. ``weighting=layers`` is the authors' code:
    every layer counts the same, and w_l is 1.

    Args:
        alpha: strength; the authors' ``lmbda``.
        target_bits: mean bits that are wanted, at least 0.
        weighting: ``parameters`` or ``layers``.

    Raises:
        ValueError: a target that is no number or negative, or another weighting.

    Example:
        >>> quantizer = CSQQuantizer(torch.tensor([1.0, 0.5]), precision=4)  # every f(m) is a half
        >>> float(CSQBudget(alpha=1.0, target_bits=2).penalty({"layer": quantizer}))
        1.0
        >>> float(CSQBudget(alpha=1.0, target_bits=4).penalty({"layer": quantizer}))
        0.0
    """

    def __init__(self, alpha: float, target_bits: float = 2.0, weighting: str = "parameters") -> None:
        super().__init__(alpha)
        if isinstance(target_bits, bool) or not isinstance(target_bits, (int, float)) or not 0 <= target_bits <= 16:
            raise ValueError(f"reg.target_bits is a mean number of bits from 0 to 16, not {target_bits!r}")
        if weighting not in WEIGHTINGS:
            raise ValueError(f"reg.weighting is one of {', '.join(WEIGHTINGS)}, not {weighting!r}")
        self.target_bits, self.weighting = float(target_bits), weighting

    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        own = {name: quantizer for name, quantizer in quantizers.items() if isinstance(quantizer, CSQQuantizer)}
        if not own:
            raise ValueError(f"reg=csq_budget chooses among the planes of quant=csq; {self.instead(quantizers)}")
        if self.target_bits > (most := max(len(quantizer.mask) for quantizer in own.values())):
            raise ValueError(f"reg.target_bits={self.target_bits:g} is above the {most} bits that there are")

    def penalty(self, quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        own = [quantizer for quantizer in quantizers.values() if isinstance(quantizer, CSQQuantizer)]
        sizes = [1.0 if self.weighting == "layers" else float(math.prod(quantizer.shape)) for quantizer in own]
        shares = [size / sum(sizes) for size in sizes]
        # All on the device: no step waits for it.
        planes = [quantizer.plane_weights() for quantizer in own]
        bits = torch.stack([s * (q.mask.detach() >= 0).sum() for s, q in zip(shares, own, strict=True)]).sum()
        pressed = torch.stack([s * f.sum() for s, f in zip(shares, planes, strict=True)]).sum() * len(own)
        most = max(len(quantizer.mask) for quantizer in own)
        return self.alpha * (bits - self.target_bits) / most * pressed
