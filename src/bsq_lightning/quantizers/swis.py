"""SWIS while it trains: groups of weights share few bit positions, found anew at every step (arXiv 2103.01308).

Only the abstract could be read; retraining through the projection is derived.
"""

import torch
from torch import Tensor

from bsq_lightning.ops.shared_shifts import share_in_filters
from bsq_lightning.ops.uniform import quantize
from bsq_lightning.quantized_tensor import QuantizedTensor, Shifts
from bsq_lightning.quantizers.latent import LatentQuantizer

MOST = 10  # bits for which the tables of all subsets are small


class SWISQuantizer(LatentQuantizer):
    """``W = step * P(clip(round(u / step), +-(2^B - 1)))`` with dL/du = G, and a constant step.

    P takes each group of M codes to the nearest ones that use N bit positions, any of B or neighbours (SWIS-C): the
    projection of ``post_training.SWIS`` on codes of u. The positions are searched at every step, which takes 10 ms for
    the 0.27 M weights of ResNet-20 at N = 2 on one core, so W is a function of u alone and nothing else is kept.

    Args:
        weight: tensor to start from; with output channels and more than one dimension.
        precision: bits B of the codes before, at most 10; 0 freezes the tensor at zero.
        step: value of one code, a number or a tensor; or ``max`` / ``mse`` to choose it from W.
        shifts: positions N of a group; all B where there are fewer.
        group: weights M of a group, along the channels of a filter.
        consecutive: SWIS-C.
        per_channel: whether each output channel has a step of its own, where ``step`` is a rule.

    Raises:
        ValueError: bits, shifts or a group out of range, or a tensor without filters.

    Example:
        >>> weight = torch.tensor([[10.0, -2.0, 8.0, 0.0], [15.0, 4.0, -3.0, 13.0]])
        >>> SWISQuantizer(weight, precision=4, shifts=2).codes()
        tensor([[10., -2.,  8.,  0.],
                [12.,  4., -4., 12.]])
    """

    def __init__(
        self,
        weight: Tensor,
        precision: int = 8,
        step: float | str | Tensor = "max",
        shifts: int = 2,
        group: int = 4,
        consecutive: bool = False,
        per_channel: bool = False,
    ) -> None:
        for name, value in (("quant.shifts", shifts), ("quant.group", group)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is a whole number of at least 1, not {value!r}")
        if weight.dim() < 2:
            raise ValueError("bits are shared inside the filters of a layer, which a bias does not have")
        super().__init__(weight, precision, step, units="weight", per_channel=per_channel)
        if precision > MOST:
            raise ValueError(f"precision is the bits of codes that share their positions, at most {MOST}")
        self.shifts, self.group, self.consecutive = shifts, group, consecutive

    def _number(self) -> Tensor:
        """Positions of a group of each filter, ``[K]``."""
        return torch.full((self.shape[0],), min(self.shifts, self.precision), device=self.latent.device)

    def codes(self) -> Tensor:
        if not self.precision:
            return torch.zeros_like(self.latent)
        plain = quantize(self.latent.detach(), self.step(), self.precision).to(torch.int32)
        shared = share_in_filters(plain, self._number(), self.group, self.precision, self.consecutive)
        return shared.to(self.latent.dtype)

    def hold_codes_(self, where: Tensor, codes: Tensor) -> None:
        raise ValueError("SWIS's codes share bit positions with their group: one that is held moves when another does")

    def tensor(self) -> QuantizedTensor:
        plain = super().tensor()
        if not self.precision:
            return plain
        shifts = Shifts(self.group, self._number().to(torch.int32), self.consecutive)
        return QuantizedTensor(plain.codes, plain.step, plain.precision, extra=shifts)
