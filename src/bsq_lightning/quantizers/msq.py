"""MSQ: one float for each weight, whose lowest bits are pressed to zero and dropped (ICCV 2025, arXiv 2507.22349)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.quantizers.base import Adjustment, check_precision
from bsq_lightning.quantizers.one_float import SMALLEST_SCALE, OneFloatQuantizer


def round_clamp(x: Tensor, precision: int) -> Tensor:
    """RoundClamp of x in [-1, 1]: ``clip(round(2^n x), +-(2^n - 1))``, half to even; zeros at 0 bits.

    The factor is 2^n and not 2^n - 1, so that a border between two codes of n - k bits lies on a code of n bits, in
    the middle of the codes that it parts: of every weight with lowest bits, their sign says on which side of its
    nearest coarse code it lies. (The factor 2^n - 1 puts the borders elsewhere, and many signs point the wrong way.)

    Example:
        >>> x = torch.tensor([0.3, -0.6, 1.0])
        >>> round_clamp(x, 3), round_clamp(x, 2)
        (tensor([ 2., -5.,  7.]), tensor([ 1., -2.,  3.]))
    """
    top = 2**precision - 1
    return (x.detach() * 2**precision).round_().clamp_(-top, top)


class MSQQuantizer(OneFloatQuantizer):
    """``W = M round_clamp(w / M, n) / 2^n``, straight through, with one float w for each weight and ``M = max|w|``.

    The paper's code was not found; its equations are known from secondary summaries, and what is marked so here is
    unverified. The ``k`` lowest bits of a code are ``B = c_n - 2^k c_(n-k)``. ``regularizers/msq_lsb.py`` presses them
    to zero; an adjustment drops them (n becomes n - k) where fewer than ``threshold`` of the weights have any, and the
    same w then has the coarser grid. M follows w and takes no gradient (unverified, as is max|w| against tanh).

    The paper's codes are 0 to 2^b - 1 of ``w / (2 M) + 1/2``, b bits that hold the sign. Ours are those less 2^(b-1),
    in b = n + 1 bits: n of magnitude and a sign beside them, as every method here counts, without the code -2^n.

    Codes of the largest magnitude are odd and cannot lose their lowest bits: the share is of the others.

    Args:
        weight: tensor to start from.
        precision: bits of magnitude n at the start; 0 freezes the tensor at zero.
        threshold: share of weights with lowest bits, below which these are dropped; half have some by chance.
        lowest_bits: k at the start, for this tensor; 0 presses and drops nothing.
        min_precision: bits that no adjustment goes below.
        step: of a scheme found by another method; it is not needed, M being that of the weights.

    Raises:
        ValueError: precision or min_precision outside 0..16, threshold outside 0..1, or lowest_bits below 0.

    Example:
        >>> quantizer = MSQQuantizer(torch.tensor([0.5, -0.26, 0.12]), precision=3)
        >>> quantizer.codes(), quantizer.lowest(1), quantizer.step()
        (tensor([ 7., -4.,  2.]), tensor([1., 0., 0.]), tensor(0.0625))
    """

    own_penalty = "msq_lsb"

    def __init__(
        self,
        weight: Tensor,
        precision: int = 7,
        threshold: float = 0.3,
        lowest_bits: int = 1,
        min_precision: int = 1,
        step: float | Tensor | None = None,
    ) -> None:
        super().__init__(weight, precision)
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 <= threshold <= 1:
            raise ValueError(f"quant.threshold must be a share from 0 to 1, such as 0.3, not {threshold!r}")
        self.threshold = float(threshold)
        self.lowest_bits = check_precision("lowest_bits", lowest_bits, lowest=0)
        self.min_precision = check_precision("quant.min_precision", min_precision, lowest=0)
        self.scale = nn.Parameter(torch.zeros_like(weight.detach().flatten()[0]), requires_grad=False)
        self.project_()

    @property
    def pressed(self) -> int:
        """How many of the lowest bits are pressed and may be dropped: at most what leaves ``min_precision``."""
        return max(0, min(self.lowest_bits, self.precision - self.min_precision))

    def step(self) -> Tensor:
        """Value of one code, ``M / 2^n``; 0 at 0 bits."""
        return self.scale.detach() / 2**self.precision if self.precision else self.scale.detach() * 0

    def codes(self) -> Tensor:
        return round_clamp(self.latent.detach() / self.scale, self.precision)

    def lowest(self, k: int) -> Tensor:
        """B, the k lowest bits of every code, signed."""
        return self.codes() - 2**k * round_clamp(self.latent.detach() / self.scale, self.precision - k)

    def residual(self) -> Tensor:
        """``w / M - c_(n-k) / 2^(n-k)`` for the k bits that are ``pressed``: how far each weight is from being without
        them; differentiable in w."""
        unit = self.latent / self.scale.detach()
        kept = self.precision - self.pressed
        return unit - round_clamp(unit, kept) / 2**kept

    def latents(self) -> Sequence[nn.Parameter]:
        return (self.latent,)  # at 0 bits too: a resumed optimizer has as many parameters as one that went on

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        return (grad.clone() if self.precision else torch.zeros_like(grad),)

    def hold_codes_(self, where: Tensor, codes: Tensor) -> None:
        raise ValueError("MSQ's levels follow its largest weight: to hold that one at a code would shrink them all")

    @torch.no_grad()
    def project_(self) -> None:
        """M to the largest magnitude; latents are bounded by nothing."""
        self.scale.copy_(self.latent.abs().amax().clamp_min(SMALLEST_SCALE))

    @torch.no_grad()
    def adjust_precision_(self, bits: int | None = None) -> Adjustment:
        """Drops the ``pressed`` lowest bits, once, where few enough weights have any; or goes to ``bits``.

        Raises:
            ValueError: bits outside 1..16, or a tensor at 0 bits, which cannot grow.
        """
        if bits is not None:
            if not self.precision:
                raise ValueError(f"a tensor at 0 bits cannot be brought to {bits}")
            self._precision = check_precision("bits", bits)
            return Adjustment(f"brought to {bits} bits")
        k = self.pressed
        if not k:
            return Adjustment(audit={"pressed_bits": 0})
        free = self.codes().abs() < 2**self.precision - 1
        share = float((self.lowest(k) != 0)[free].double().mean()) if bool(free.any()) else 1.0
        audit = {"pressed_bits": k, "share_with_lowest_bits": round(share, 4)}
        if share >= self.threshold:
            return Adjustment(audit=audit)
        self._precision -= k
        return Adjustment("MSQ drops lowest bits that few of the weights have", audit=audit)

    def get_extra_state(self) -> Any:
        return {"precision": self._precision, "lowest_bits": self.lowest_bits}

    def set_extra_state(self, state: Any) -> None:
        super().set_extra_state(state["precision"])
        self.lowest_bits = check_precision("lowest_bits in the checkpoint", state["lowest_bits"], lowest=0)
