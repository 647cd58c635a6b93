"""Ordinary quantization-aware training at bits that change while it trains: something else allocates them."""

from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.ops.uniform import levels, mse_step
from bsq_lightning.quantizers.base import Adjustment, check_precision
from bsq_lightning.quantizers.latent import LatentQuantizer


class AllocatedQuantizer(LatentQuantizer):
    """``W = step * clip(round(u / step), +-(2^n - 1))`` with dL/du = G, and n given from outside at any time.

    A change of n keeps u, and with it all that training has learned, takes the step of least squared error of u at the
    new bits, and keeps the momentum. Until the bits are final, u is not bounded: what lies outside the range at few
    bits is inside it again when the tensor gets a bit back. From then on it is, as in ``LatentQuantizer``.

    Args:
        weight: tensor to start from.
        precision: bits of magnitude at the start, at least 1.
        step: value of one code of a known scheme; None: that of least squared error.

    Raises:
        ValueError: precision outside 1..16, or a tensor of zeros.

    Example:
        >>> quantizer = AllocatedQuantizer(torch.tensor([0.9, -0.4, 0.1]), precision=3)
        >>> quantizer.adjust_precision_(1).may_move
        'brought to 1 bits'
        >>> quantizer.codes(), quantizer.relaxed()
        (tensor([ 1., -1.,  0.]), tensor([ 0.9000, -0.4000,  0.1000]))
    """

    settled = False
    """Whether the bits are final."""

    def rows(self) -> Tensor:
        """u as ``[R, weights]``: each row has bits of its own. Here it is one."""
        return self.latent.detach().reshape(1, -1)

    def row_bits(self) -> list[int]:
        """Bits of magnitude of each of ``rows()``."""
        return [self._precision]

    def __init__(self, weight: Tensor, precision: int = 4, step: float | Tensor | None = None) -> None:
        check_precision("precision", precision)
        if not bool(weight.any()):
            raise ValueError("all weights are zero, so there is no step to choose: give trained weights or skip it")
        super().__init__(weight, precision, step="mse" if step is None else step, units="weight")

    @torch.no_grad()
    def project_(self) -> None:
        if self.settled:
            super().project_()

    @torch.no_grad()
    def adjust_precision_(self, bits: int | None = None) -> Adjustment:
        """Goes to ``bits``; without a number it leaves the tensor as it is.

        Raises:
            ValueError: bits outside 1..16.
        """
        if bits is None:
            return Adjustment()
        self._precision = check_precision("bits", bits)
        self.scale = nn.Parameter(mse_step(self.latent.detach(), bits) * levels(bits), requires_grad=False)
        return Adjustment(f"brought to {bits} bits")

    def settle_(self) -> None:
        """The bits are final: from the next step on u is bounded by the range of the codes."""
        self.settled = True

    def get_extra_state(self) -> Any:
        return {"precision": self._precision, "settled": self.settled}

    def set_extra_state(self, state: Any) -> None:
        if not isinstance(state, dict):  # of LatentQuantizer, whose bits do not change
            state = {"precision": state, "settled": True}
        super().set_extra_state(state["precision"])
        self.settled = bool(state["settled"])
