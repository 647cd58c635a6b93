"""BSQ's bit-level group lasso with memory-aware weights (Yang et al., ICLR 2021, equations 4 and 5)."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bsq_lightning.ops.bit_planes import plane_squares
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentStep, WeightQuantizer
from bsq_lightning.regularizers.base import Regularizer

EPSILON = 1e-8  # inside the root, as in the authors' code: the gradient stays finite on an empty plane


class BitGroupLasso(Regularizer):
    """``alpha / P_tot * sum_l P_l n_l sum_b sqrt(1e-8 + ||p_b||^2 + ||q_b||^2)``.

    One group is one bit position of one layer, both signs together. P_l is the number of weights and n_l the current
    number of bits of layer l, so a layer is pressed in proportion to the memory it takes, and less as it loses bits.

    Args:
        alpha: strength.

    Example:
        >>> quantizer = BitPlaneQuantizer(torch.tensor([1.0, 0.0]), precision=1)
        >>> round(float(BitGroupLasso(alpha=0.5).penalty({"layer": quantizer})), 4)
        0.5
    """

    _key: tuple[object, ...] = ()
    _vector: Tensor

    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        if not any(isinstance(quantizer, BitPlaneQuantizer) for quantizer in quantizers.values()):
            raise ValueError(f"reg=bit_group_lasso needs bit planes (quant=bsq); {self.instead(quantizers)}")

    def penalty(self, quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        planes = _planes(quantizers)
        total = _weights(planes)
        terms = [
            (plane_squares(quantizer.planes) + EPSILON).sqrt().sum() * self._weight(quantizer, total)
            for quantizer in planes.values()
        ]
        return torch.stack(terms).sum()

    def add_gradient_(self, steps: Mapping[str, LatentStep]) -> Tensor:
        """The closed form: the gradient is a factor for each plane times the plane, so no graph and no plane is held.

        The norms are those that the last step has computed with the planes, where it has.
        """
        planes = _planes({name: step.quantizer for name, step in steps.items()})
        # All layers in one vector, so that the number of operations does not grow with theirs.
        norms = (torch.cat([q.squares(steps[name].state) for name, q in planes.items()]) + EPSILON).sqrt()
        weights = self._weights_of_bits(planes, norms)
        decays = (weights / norms).split([quantizer.precision for quantizer in planes.values()])
        for name, decay in zip(planes, decays, strict=True):
            steps[name].decay = decay
        return (weights * norms).sum()

    def _weights_of_bits(self, planes: Mapping[str, BitPlaneQuantizer], like: Tensor) -> Tensor:
        """``alpha n_l P_l / P_tot`` for every bit of every layer, copied to the device only when the bits change."""
        key = (self.alpha, like.dtype, like.device, *(quantizer.planes.shape for quantizer in planes.values()))
        if key != self._key:
            total = _weights(planes)
            each = [self._weight(quantizer, total) for quantizer in planes.values() for _ in range(quantizer.precision)]
            self._key, self._vector = key, torch.tensor(each, dtype=like.dtype, device=like.device)
        return self._vector

    def _weight(self, quantizer: BitPlaneQuantizer, total: int) -> float:
        return self.alpha * (quantizer.planes.numel() // 2) / total  # alpha n_l P_l / P_tot


def _planes(quantizers: Mapping[str, WeightQuantizer]) -> dict[str, BitPlaneQuantizer]:
    return {name: quantizer for name, quantizer in quantizers.items() if isinstance(quantizer, BitPlaneQuantizer)}


def _weights(planes: Mapping[str, BitPlaneQuantizer]) -> int:
    return sum(math.prod(quantizer.shape) for quantizer in planes.values())
