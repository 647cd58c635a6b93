"""LSQ: the step of each tensor is learned (Esser et al., ICLR 2020, arXiv 1902.08153)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bsq_lightning.ops.uniform import levels, quantize, sum_like
from bsq_lightning.quantizers.base import LatentRate
from bsq_lightning.quantizers.one_float import SMALLEST_SCALE, OneFloatQuantizer, as_step


class LSQQuantizer(OneFloatQuantizer):
    """``W = s * clip(round(v), +-Q)`` with ``v = latent / s`` and ``Q = 2^n - 1``; both latent and s are learned.

    With G = dL/dW (equations 3 to 5 and section 2.2 of the paper), sums over the weights that share a step:

    - dL/dlatent = G where |v| <= Q, else 0;
    - dL/ds = g sum(G (round(v) - v)) over |v| <= Q, plus g sum(G sign(v) Q) elsewhere, ``g = 1 / sqrt(N Q)`` for N
      weights;
    - s starts at ``2 mean|W| / sqrt(Q)``.

    The paper's b bits hold the sign and reach from -2^(b-1) to 2^(b-1) - 1. Our n bits of magnitude, with the sign
    beside them, are its b = n + 1 without the code -2^(b-1), which leaves Q as in the paper: n = 1, 2, 3 here is what
    it calls 2, 3, 4 bits.

    Args:
        weight: tensor to start from.
        precision: bits of magnitude n; 0 freezes the tensor at zero.
        step: start of s, a number or ``[K, 1, ...]``; None: the paper's.
        per_channel: whether each output channel has a step of its own (the paper has one for each layer).
        step_lr_factor: learning rate of s, times that of the weights. Weight decay does not act on s.

    Raises:
        ValueError: precision outside 0..16, or a factor that is not positive.

    Example:
        >>> quantizer = LSQQuantizer(torch.tensor([0.8, -0.4, 0.1, 0.3]), precision=2)
        >>> quantizer.step(), quantizer.codes()
        (tensor(0.4619), tensor([ 2., -1.,  0.,  1.]))
    """

    def __init__(
        self,
        weight: Tensor,
        precision: int = 8,
        step: float | Tensor | None = None,
        per_channel: bool = False,
        step_lr_factor: float = 1.0,
    ) -> None:
        super().__init__(weight, precision)
        if not step_lr_factor > 0:
            raise ValueError(f"step_lr_factor must be positive, not {step_lr_factor!r}; 1 is the weights' rate")
        self.step_lr_factor = float(step_lr_factor)
        magnitude = weight.detach().abs()
        dims = tuple(range(1, weight.dim()))
        mean = magnitude.mean(dims, keepdim=True) if per_channel and dims else magnitude.mean()
        start = 2 * mean / math.sqrt(levels(max(self.precision, 1))) if step is None else as_step(step, magnitude)
        self.learned_step = nn.Parameter(start, requires_grad=False)
        self.project_()

    def step(self) -> Tensor:
        """The learned s; 0 at 0 bits."""
        return self.learned_step.detach().clone() if self.precision else self.learned_step.detach() * 0

    def codes(self) -> Tensor:
        if not self.precision:
            return torch.zeros_like(self.latent)
        return quantize(self.latent.detach(), self.learned_step.detach(), self.precision)

    def latents(self) -> Sequence[nn.Parameter]:
        return (self.latent, self.learned_step) if self.precision else ()

    def latent_rates(self) -> Sequence[LatentRate]:
        return (LatentRate(), LatentRate(self.step_lr_factor, weight_decay=0.0)) if self.precision else ()

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        if not self.precision:
            return ()
        top, step = levels(self.precision), self.learned_step
        v = self.latent / step
        inside = v.abs() <= top
        factor = 1 / math.sqrt(self.latent.numel() / step.numel() * top)
        along_step = grad * (v.round().clamp_(-top, top) - v * inside)
        return grad * inside, factor * sum_like(along_step, step)

    @torch.no_grad()
    def project_(self) -> None:
        """The step stays at or above 1e-8: a negative one would turn all signs."""
        self.learned_step.clamp_(min=SMALLEST_SCALE)
