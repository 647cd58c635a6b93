"""Activation quantizers: steps scaled by the largest activation, of the batch or fixed from calibration batches."""

from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.distributed import largest_over_ranks_
from bsq_lightning.quantizers.base import LatentRate, check_precision


class RoundToSteps(torch.autograd.Function):
    """``round(x / step) * step`` with the gradient of the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor) -> Tensor:
        return (x / step).round_().mul_(step)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


class ClipAt(torch.autograd.Function):
    """``clamp(x, -a, a)`` for a scalar tensor ``a >= 0``; ``da`` sums the gradients from the clip on, with x's sign.

    Choi et al., 2018, equation 3. torch.clamp shares the gradient at the clip itself, and its backward for bounds that
    are tensors takes some five times as long on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, clip: Tensor) -> Tensor:
        bound = clip.to(x.dtype)
        ctx.save_for_backward(x, bound)
        ctx.dtype = clip.dtype
        return torch.clamp(x, -bound, bound)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, bound = ctx.saved_tensors
        outside = grads[0].masked_fill(x.abs() < bound, 0)
        return grads[0] - outside, (outside * x.sign()).sum().to(ctx.dtype)


class ActivationQuantizer(nn.Module):
    """``2^k - 1`` steps up to the largest magnitude S: ``round(x (2^k - 1) / S) * S / (2^k - 1)``, straight through.

    S is the maximum of the current batch, over all ranks, while training. ``range`` holds a fixed S once calibrated,
    and evaluation uses it, so that accuracy does not depend on how the test images are batched; 0 means not calibrated.
    Negative inputs (only in networks whose layers see any) keep their sign, which is extra, as it is for weights.

    Args:
        precision: bits k of magnitude, 1 to 16.
    """

    range: Tensor

    rate = LatentRate()
    """How the optimizer treats what is learned here; the clip of PACT decays as the weights do, as in its paper."""

    def __init__(self, precision: int) -> None:
        super().__init__()
        self.precision = check_precision("quant.act_precision", precision)
        self.register_buffer("range", torch.tensor(0.0))
        self.observing = False

    def clip(self, x: Tensor) -> Tensor:
        """What happens before rounding; the identity here."""
        return x

    def clip_value(self) -> float | None:
        """The bound of ``clip``; None where there is none (reads the device)."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        x = self.clip(x)
        with torch.no_grad():
            size = x.abs().amax()
            size = size.to(torch.promote_types(size.dtype, torch.float32))
            if self.training or self.observing:
                if self.training:
                    # The batch is the one of all ranks together, so that its steps do not depend on their number.
                    size = largest_over_ranks_(size)
                if self.observing:
                    self.range.copy_(torch.maximum(self.range, size))
            else:
                # Chosen on the device: asking the buffer on the host would synchronize at every layer.
                size = torch.where(self.range > 0, self.range, size)
            # In the activation's own dtype, and never zero in it: a batch of zeros stays zero.
            step = size.div(2**self.precision - 1).to(x.dtype).clamp_min(torch.finfo(x.dtype).tiny)
        if not self.training:
            x = torch.clamp(x, -size.to(x.dtype), size.to(x.dtype))
        return RoundToSteps.apply(x, step)  # type: ignore[return-value]

    def after_layer(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Forward hook: quantizes what the module (a ReLU) returns."""
        return self(output)

    def before_layer(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook: quantizes what the module (a quantized layer) takes."""
        return self(args[0]), *args[1:]


class ReLU6Quantizer(ActivationQuantizer):
    """Clips at 6, then rounds; the choice at 4 bits and more (Yang et al., ICLR 2021, appendix; their code).

    Example:
        >>> ReLU6Quantizer(2)(torch.tensor([0.0, 0.9, 1.1, 9.0]))
        tensor([0., 0., 2., 6.])
    """

    def clip(self, x: Tensor) -> Tensor:
        return x.clamp(-6, 6)

    def clip_value(self) -> float:
        return 6.0


class PACT(ActivationQuantizer):
    """Learned clip, then rounds; the choice at 3 bits and fewer (Choi et al., 2018, arXiv 1805.06085).

    Args:
        precision: bits.
        clip: start of the learned clip.
    """

    def __init__(self, precision: int, clip: float = 10.0) -> None:
        super().__init__(precision)
        self.alpha = nn.Parameter(torch.tensor(float(clip)))

    def clip(self, x: Tensor) -> Tensor:
        return ClipAt.apply(x, self.alpha)  # type: ignore[return-value]

    def clip_value(self) -> float:
        return float(self.alpha.detach())


def relu6_or_pact(precision: int) -> ActivationQuantizer:
    """The BSQ paper's choice: ReLU6 at 4 bits and more, PACT at 3 and fewer."""
    return ReLU6Quantizer(precision) if precision > 3 else PACT(precision)
