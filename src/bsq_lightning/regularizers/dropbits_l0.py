"""DropBits' penalty on bits that are there (arXiv 2109.02100; its form is derived from L0, arXiv 1712.01312)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bsq_lightning.quantizers import CPQQuantizer, WeightQuantizer
from bsq_lightning.quantizers.cpq import HEAT, HIGH, LOW
from bsq_lightning.regularizers.base import Regularizer


class DropBitsL0(Regularizer):
    """``alpha * sum_l P_l / P_tot * sum_{j = 2..n} P(Z_lj > 0)``: alpha times the bits, beyond the first, that a weight
    is expected to have. ``P(Z > 0) = sigmoid(logit - 2/3 log(-LOW / HIGH))``.

    The weighting by size, P_l of P_tot weights, makes it a budget of size; the paper's weighting is unverified.

    Args:
        alpha: strength.

    Example:
        >>> quantizer = CPQQuantizer(torch.tensor([0.4, -0.1]), precision=3, dropbits=True, keep=0.5)
        >>> round(float(DropBitsL0(alpha=1.0).penalty({"layer": quantizer})), 4)
        1.6636
    """

    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        if not _learning(quantizers):
            cpq = any(isinstance(quantizer, CPQQuantizer) for quantizer in quantizers.values())
            raise ValueError(
                "reg=dropbits_l0 presses on the bits that quant=cpq learns, with quant.dropbits=true, "
                "quant.learn_bits=true and a precision above 1; there are none here: "
                f"{'use reg=none with these settings' if cpq else self.instead(quantizers)}"
            )

    def penalty(self, quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        learning = _learning(quantizers)
        if not learning:
            return torch.zeros(())
        total = sum(math.prod(quantizer.shape) for quantizer in quantizers.values())
        shift = HEAT * math.log(-LOW / HIGH)
        return (
            self.alpha
            * torch.stack(
                [
                    math.prod(quantizer.shape)
                    / total
                    * (quantizer.logits[: quantizer.most - 1] - shift).sigmoid().sum()
                    for quantizer in learning
                ]
            ).sum()
        )


def _learning(quantizers: Mapping[str, WeightQuantizer]) -> list[CPQQuantizer]:
    return [q for q in quantizers.values() if isinstance(q, CPQQuantizer) and q.drops and q.learn_bits]
