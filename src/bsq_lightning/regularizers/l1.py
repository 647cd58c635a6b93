"""Plain L1 of the weights: what bit-slice L1 starts from and is compared with (arXiv 1909.08496)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from bsq_lightning.quantizers import WeightQuantizer
from bsq_lightning.regularizers.base import Regularizer


class L1(Regularizer):
    """``alpha / N * sum |w|`` over the N quantized weights, as the network computes with them (rounded).

    Args:
        alpha: strength; the authors' code has 20 for CIFAR-10 and 10 for MNIST, over all parameters.

    Example:
        >>> from bsq_lightning.quantizers import FixedPointQuantizer
        >>> quantizer = FixedPointQuantizer(torch.tensor([0.75, -0.25]))
        >>> float(L1(alpha=1.0).weight_penalty({"fc": quantizer.weight()}, {"fc": quantizer}))
        0.5
    """

    on_weights = True

    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        if not quantizers:
            raise ValueError("reg=l1 acts on quantized weights, and nothing is quantized here")

    def weight_penalty(self, weights: Mapping[str, Tensor], quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        elements = sum(weight.numel() for weight in weights.values())
        return self.alpha / elements * torch.stack([weight.abs().sum() for weight in weights.values()]).sum()
