"""Bits for each filter: an output channel that matters little has fewer than its neighbour, or none."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.ops.uniform import levels, mse_step
from bsq_lightning.quantized_tensor import Filters, QuantizedTensor
from bsq_lightning.quantizers.allocated import AllocatedQuantizer
from bsq_lightning.quantizers.base import Adjustment, check_precision
from bsq_lightning.quantizers.one_float import SMALLEST_SCALE


class FilterQuantizer(AllocatedQuantizer):
    """``W_k = s_k * clip(round(u_k / s_k), +-(2^n_k - 1))`` for each output channel k, with dL/du = G.

    Each filter has bits n_k and a step s_k of its own; a change of n_k takes the step of least squared error of that
    filter. At 0 bits W_k is zero and gets no gradient: behind it a batch norm divides by the root of its epsilon, so
    that G is no measure of anything there. u_k is kept, but for decay and what is left of its momentum, and with it
    what the filter comes back as.

    Args:
        weight: tensor to start from, ``[K, ...]``, of more than one dimension.
        precision: bits of magnitude of every filter at the start, at least 1.
        step: value of one code, a number or ``[K, 1, ...]``; None: that of least squared error of each filter.

    Raises:
        ValueError: precision outside 1..16, a tensor of zeros, or one without filters.

    Example:
        >>> quantizer = FilterQuantizer(torch.tensor([[0.9, -0.4], [0.1, 0.1]]), precision=2)
        >>> quantizer.adjust_precision_([1, 0]).may_move
        'bits of 2 of 2 filters changed'
        >>> quantizer.weight()
        tensor([[ 0.6525, -0.6525],
                [ 0.0000,  0.0000]])
    """

    bits: Tensor

    def __init__(self, weight: Tensor, precision: int = 4, step: float | Tensor | None = None) -> None:
        if weight.dim() < 2:
            raise ValueError("bits for each filter need filters, which a bias does not have")
        super().__init__(weight, precision, step)
        self.register_buffer("bits", torch.full((len(weight),), precision, device=weight.device), persistent=False)
        everywhere = torch.full_like(self.bits, step is None, dtype=torch.bool)
        self.scale = nn.Parameter(self._scales(self.bits, everywhere), requires_grad=False)

    def _of_filters(self, values: Tensor) -> Tensor:
        """``[K]`` as ``[K, 1, ...]``."""
        return values.reshape(-1, *[1] * (self.latent.dim() - 1)).clone()

    def _top(self) -> Tensor:
        """Largest code of each filter, ``[K, 1, ...]``; 0 at 0 bits."""
        return self._of_filters(((torch.ones_like(self.bits) << self.bits) - 1).to(self.latent.dtype))

    def _scales(self, bits: Tensor, where: Tensor) -> Tensor:
        """Largest value of each filter in ``where`` at ``bits``, ``[K, 1, ...]``; that of now elsewhere."""
        scales = self.scale.detach().flatten().expand(len(bits)).clone()
        for n in bits[where].unique().tolist():
            some = where & (bits == n)
            step = mse_step(self.latent.detach()[some], n, per_channel=True).flatten() if n else scales.new_zeros(())
            scales[some] = (step.clamp_min(SMALLEST_SCALE) * levels(n)) if n else step
        return self._of_filters(scales)

    def rows(self) -> Tensor:
        """u as ``[K, weights of a filter]``."""
        return self.latent.detach().flatten(1)

    def row_bits(self) -> list[int]:
        return self.bits.tolist()

    def step(self) -> Tensor:
        """``[K, 1, ...]``; 0 at 0 bits."""
        return self.scale.detach() / self._top().clamp_min(1)

    def codes(self) -> Tensor:
        top = self._top()
        codes = (self.latent.detach() / self.step().clamp_min(SMALLEST_SCALE)).round_()
        return torch.minimum(torch.maximum(codes, -top), top)

    def relaxed(self) -> Tensor:
        return self.latent.detach().masked_fill(self.rests(), 0)

    def tensor(self) -> QuantizedTensor:
        counts = self.bits.to(torch.int32)
        extra = Filters(counts)
        return QuantizedTensor(self.codes().to(torch.int32), self.step(), extra.precision, extra=extra)

    def latents(self) -> Sequence[nn.Parameter]:
        return (self.latent,)

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        return (grad.masked_fill(self.rests(), 0),)

    def rests(self) -> Tensor:
        """The filters at 0 bits, bool ``[K, 1, ...]``."""
        return self._of_filters(self.bits == 0)

    @torch.no_grad()
    def project_(self) -> None:
        if self.settled:
            bound = self.scale.masked_fill(self.rests(), torch.inf)
            self.latent.copy_(torch.minimum(torch.maximum(self.latent, -bound), bound))

    @torch.no_grad()
    def adjust_precision_(self, bits: int | Sequence[int] | None = None) -> Adjustment:  # type: ignore[override]
        """Goes to ``bits``, one number for all filters or one for each; without any it leaves the tensor as it is.

        Raises:
            ValueError: bits outside 0..16, or not as many as there are filters.
        """
        if bits is None:
            return Adjustment()
        each = [bits] * len(self.bits) if isinstance(bits, int) else list(bits)
        new = self._checked("bits", each)
        changed = new != self.bits
        self.scale = nn.Parameter(self._scales(new, changed), requires_grad=False)
        self.bits.copy_(new)
        self._precision = int(new.max())
        return Adjustment(f"bits of {int(changed.sum())} of {len(new)} filters changed")

    def hold_codes_(self, where: Tensor, codes: Tensor) -> None:
        raise ValueError("codes of a filter change their meaning with its bits, whatever those of the tensor are")

    def get_extra_state(self) -> Any:
        return {**super().get_extra_state(), "bits": self.bits.tolist()}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state)
        bits = state.get("bits") if isinstance(state, dict) else None
        self.bits.copy_(self._checked("bits of a filter in the checkpoint", bits or [self._precision] * len(self.bits)))

    def _checked(self, what: str, bits: Sequence[int]) -> Tensor:
        if len(bits) != len(self.bits):
            raise ValueError(f"{what}: {len(self.bits)} filters need as many numbers, not {len(bits)}")
        return self.bits.new_tensor([check_precision(what, n, lowest=0) for n in bits])
