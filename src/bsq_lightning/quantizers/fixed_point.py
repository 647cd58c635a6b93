"""Dynamic fixed point: a step that is a power of two and follows the largest weight (bit-slice L1, arXiv 1909.08496).

As in the authors' code (github.com/zjysteven/bitslice_sparsity), except that the code 2^n, which a weight of exactly
2^S or above (2^n - 1/2) steps would get, is clipped to 2^n - 1: a slice of two bits would hold a 4 otherwise.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.ops.uniform import levels, quantize
from bsq_lightning.quantizers.base import WeightQuantizer, check_precision

SMALLEST = 1e-5  # of the largest magnitude, as in the authors' code


class FixedPointQuantizer(WeightQuantizer):
    """``W = 2^(S - n) * clip(round(latent / 2^(S - n)), +-(2^n - 1))`` with ``S = ceil(log2(max |latent|))``.

    The latent is W itself, straight through the rounding and the clip: dL/dlatent = G. S is that of the latents after
    every step. Pruned weights stay zero: their gradients are, too.

    Args:
        weight: tensor to start from.
        precision: bits of magnitude n.

    Raises:
        ValueError: precision outside 1..16.

    Example:
        >>> quantizer = FixedPointQuantizer(torch.tensor([0.9, -0.3, 0.001]))
        >>> quantizer.step(), quantizer.codes()
        (tensor(0.0039), tensor([230., -77.,   0.]))
    """

    mask: Tensor

    own_penalty = "bitslice_l1"

    def __init__(self, weight: Tensor, precision: int = 8) -> None:
        super().__init__()
        self._precision = check_precision("quant.precision", precision)
        self.latent = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.scale = nn.Parameter(weight.detach().new_tensor(0.0), requires_grad=False)
        self.register_buffer("mask", torch.ones_like(self.latent, dtype=torch.bool))
        self.project_()

    @property
    def precision(self) -> int:
        return self._precision

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latent.shape)

    def codes(self) -> Tensor:
        return quantize(self.latent.detach(), self.step(), self.precision)

    def relaxed(self) -> Tensor:
        return self.latent.detach()

    def latents(self) -> Sequence[nn.Parameter]:
        return (self.latent,)

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        return (grad * self.mask,)

    @torch.no_grad()
    def project_(self) -> None:
        """Pruned weights to zero, and the step to the power of two that the largest weight asks for."""
        self.latent.mul_(self.mask)
        mantissa, exponent = torch.frexp(self.latent.abs().max().clamp_min(SMALLEST))  # 2^exponent * [0.5, 1)
        exponent = exponent - (mantissa == 0.5).to(exponent.dtype)
        step = torch.ldexp(torch.ones_like(mantissa), exponent - self.precision)
        self.scale.copy_(step * levels(self.precision))  # exact, and so is the way back in step()

    @torch.no_grad()
    def prune_(self, threshold: float) -> None:
        """Weights below ``threshold`` are zero from now on.

        Raises:
            ValueError: that leaves nothing.
        """
        mask = self.mask & (self.latent.abs() >= threshold)
        if not bool(mask.any()):
            raise ValueError(f"pruning at {threshold:g} leaves no weight; the largest is {self.latent.abs().max():.3g}")
        self.mask.copy_(mask)
        self.project_()

    def get_extra_state(self) -> Any:
        return self._precision

    def set_extra_state(self, state: Any) -> None:
        self._precision = check_precision("precision in the checkpoint", state)


def prune(network: Any, threshold: float = 0.01) -> None:
    """Prunes every tensor of a ``QuantizedNetwork`` by magnitude, once. Batch norm, which the authors' loop prunes and
    freezes along with all else, is left alone, and so are biases that stay float.

    Raises:
        ValueError: it leaves nothing of a layer, which is named, or the threshold is negative.
    """
    if not threshold >= 0:
        raise ValueError(f"quant.prune_below is a magnitude, at least 0, not {threshold!r}")
    for name, _, quantizer in network.quantizers():
        if isinstance(quantizer, FixedPointQuantizer):
            try:
                quantizer.prune_(threshold)
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}; lower quant.prune_below") from error
    network.write_weights_()
