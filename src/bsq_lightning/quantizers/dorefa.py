"""DoReFa: weights through tanh onto an even number of levels (Zhou et al., 2016, arXiv 1606.06160)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bsq_lightning.ops.uniform import levels, sum_like
from bsq_lightning.quantized_tensor import Grid, QuantizedTensor
from bsq_lightning.quantizers.one_float import SMALLEST_SCALE, OneFloatQuantizer, as_step


class DoReFaQuantizer(OneFloatQuantizer):
    """``W = scale * (2 round(K x) / K - 1)``, ``x = tanh(r) / (2 max|tanh(r)|) + 1/2``, ``K = 2^(n+1) - 1``.

    That is equation 9 of the paper at k = n + 1 bits, straight through the rounding (equation 5), the maximum
    differentiated too, as in the authors' tensorpack code. Every ``2 round(K x) - K`` is an odd number, so there is no
    level at zero: k bits, the sign among them, have 2^k levels. Our n bits of magnitude with the sign beside them are
    the same k = n + 1 bits. ``codes()`` are those odd numbers, ``step()`` is ``scale / K``, and W is their product, bit
    for bit; ``tensor()`` keeps their places among the odd numbers, which is what n + 1 bits can hold. The paper's
    binary weights (k = 1) would have no bit of magnitude and are not among them.

    Args:
        weight: tensor r to start from.
        precision: bits of magnitude n, one fewer than the paper's; 0 freezes the tensor at zero.
        step: of a scheme found by another method; the scale is then ``step * (2^n - 1)``.
        scale: largest magnitude of W: 1 (the paper), or ``fit``: that of least squared error to ``weight``, so that
            trained float weights keep their size. It is not trained.
        per_channel: whether the maximum, and a fitted scale, are of each output channel (the paper: of the layer).

    Raises:
        ValueError: precision outside 0..16, or a scale that is neither positive nor ``fit``.

    Example:
        >>> quantizer = DoReFaQuantizer(torch.tensor([0.9, -0.2, 0.1]), precision=1)
        >>> quantizer.codes(), quantizer.step(), quantizer.tensor().codes
        (tensor([ 3., -1.,  1.]), tensor(0.3333), tensor([3, 1, 2], dtype=torch.int32))
    """

    def __init__(
        self,
        weight: Tensor,
        precision: int = 8,
        step: float | Tensor | None = None,
        scale: float | str = 1.0,
        per_channel: bool = False,
    ) -> None:
        super().__init__(weight, precision)
        if scale != "fit" and (isinstance(scale, str) or not scale > 0):
            raise ValueError(f"scale must be a positive number, such as 1, or fit, not {scale!r}")
        self.per_channel = per_channel and weight.dim() > 1
        if step is not None:
            size = as_step(step, self.latent) * levels(self.precision)
        elif scale == "fit" and self.precision:
            unit = self.codes() / self._top
            like = self._largest(unit)
            size = sum_like(weight.detach() * unit, like) / sum_like(unit * unit, like)
        else:
            size = self.latent.new_tensor(1.0 if isinstance(scale, str) else scale)
        self.scale = nn.Parameter(size, requires_grad=False)

    @property
    def _top(self) -> int:
        """The largest code K."""
        return levels(self.precision + 1)

    def _largest(self, values: Tensor) -> Tensor:
        """Largest magnitude, 0-d or ``[K, 1, ...]``; never quite zero, for a channel of zeros."""
        dims = tuple(range(1, values.dim()))
        largest = values.abs().amax(dims, keepdim=True) if self.per_channel else values.abs().amax()
        return largest.clamp_min(SMALLEST_SCALE)

    def codes(self) -> Tensor:
        """Odd whole numbers from -K to K; 0 at 0 bits."""
        if not self.precision:
            return torch.zeros_like(self.latent)
        squashed = self.latent.detach().tanh()
        x = squashed / (2 * self._largest(squashed)) + 0.5
        return (x * self._top).round_().mul_(2).sub_(self._top)

    def relaxed(self) -> Tensor:
        squashed = self.latent.detach().tanh()
        return squashed * (self.scale.detach() / self._largest(squashed))

    def hold_codes_(self, where: Tensor, codes: Tensor) -> None:
        raise ValueError("DoReFa's levels follow its largest weight: to hold that one at a code would shrink them all")

    def step(self) -> Tensor:
        """Half the distance of two neighbouring levels."""
        return self.scale.detach() / self._top if self.precision else self.scale.detach() * 0

    def tensor(self) -> QuantizedTensor:
        if not self.precision:
            return super().tensor()
        places = (self.codes() + self._top) / 2
        odd = torch.arange(-self._top, self._top + 1, 2, dtype=self.latent.dtype, device=self.latent.device)
        return QuantizedTensor(places.to(torch.int32), self.step(), self.precision, extra=Grid(odd, stored=False))

    def latents(self) -> Sequence[nn.Parameter]:
        return (self.latent,) if self.precision else ()

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        if not self.precision:
            return ()
        squashed, grad = self.latent.tanh(), grad * self.scale
        largest = self._largest(squashed)
        at_largest = squashed.abs() == largest
        share = squashed.sign() * at_largest / sum_like(at_largest.to(grad), largest).clamp_min(1)
        through_largest = share * sum_like(grad * squashed / largest, largest)
        slope = (1 - squashed.square()) / largest
        return (slope * (grad - through_largest) * (largest > SMALLEST_SCALE),)
