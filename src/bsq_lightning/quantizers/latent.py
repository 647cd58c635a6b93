"""Fixed precision: one latent float per weight. It fine-tunes a found scheme and makes the uniform baseline."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bsq_lightning.ops.uniform import levels, max_step, mse_step, quantize, sum_like
from bsq_lightning.quantizers.one_float import SMALLEST_SCALE, OneFloatQuantizer, as_step

STEPS = {"max": max_step, "mse": mse_step}


class LatentQuantizer(OneFloatQuantizer):
    """``W = step * clip(round(latent / step), +-(2^n - 1))``, straight through the rounding and the clip.

    ``units`` decides what the latent is measured in, and with it what a learning rate means:

    - ``scale`` (BSQ's fine-tuning): latent = W / scale in [-1, 1], scale trained;
      dL/dlatent = scale G, dL/dscale = sum(G W) / scale. A rate lr acts as about lr scale^2 on W.
    - ``weight`` (ordinary quantization-aware training): latent = W itself, dL/dlatent = G, step fixed.

    Args:
        weight: tensor to start from.
        precision: bits of magnitude; 0 freezes the tensor at zero.
        step: value of one code, a number or a tensor ``[K, 1, ...]``; or ``max`` / ``mse`` to choose it from W.
        units: ``scale`` or ``weight``.
        per_channel: whether each output channel has a step of its own, where ``step`` is a rule.

    Raises:
        ValueError: precision outside 0..16, an unknown step rule or unknown units.

    Example:
        >>> LatentQuantizer(torch.tensor([0.9, -0.4, 0.1]), precision=1, step=0.9).codes()
        tensor([1., -0., 0.])
    """

    def __init__(
        self,
        weight: Tensor,
        precision: int = 8,
        step: float | str | Tensor = "max",
        units: str = "scale",
        per_channel: bool = False,
    ) -> None:
        if units not in ("scale", "weight"):
            raise ValueError(f"units must be scale or weight, not {units!r}")
        if isinstance(step, str) and step not in STEPS:
            raise ValueError(f"step must be a number, max or mse, not {step!r}")
        super().__init__(weight, precision)
        weight = weight.detach()
        self.units = units
        size = weight.new_tensor(0.0)
        if self._precision:
            size = STEPS[step](weight, precision, per_channel) if isinstance(step, str) else as_step(step, weight)
            if size.dim():
                size = size.clamp_min(SMALLEST_SCALE)  # a channel of zeros
        self.scale = nn.Parameter(size * levels(precision), requires_grad=False)
        if units == "scale" and self._precision:
            self.latent.div_(self.scale)
        self.project_()

    def _latent_step(self) -> Tensor | float:
        return 1 / levels(self.precision) if self.units == "scale" else self.step()

    def _latent_of(self, codes: Tensor) -> Tensor:
        return codes * self._latent_step() if self.precision else torch.zeros_like(codes)

    def codes(self) -> Tensor:
        if not self.precision:
            return torch.zeros_like(self.latent)
        return quantize(self.latent.detach(), self._latent_step(), self.precision)

    def relaxed(self) -> Tensor:
        latent = self.latent.detach()
        return latent * self.scale.detach() if self.units == "scale" and self.precision else latent

    def latents(self) -> Sequence[nn.Parameter]:
        if not self.precision:
            return ()
        return (self.latent, self.scale) if self.units == "scale" else (self.latent,)

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        if not self.precision:
            return ()
        if self.units == "scale":
            return grad * self.scale, sum_like(grad * weight, self.scale) / self.scale
        return (grad.clone(),)

    @torch.no_grad()
    def project_(self) -> None:
        """The latent back into the range of the codes."""
        if self.units == "scale":
            self.scale.clamp_(min=SMALLEST_SCALE if self.precision else 0.0)
            self.latent.clamp_(-1, 1)
        else:
            self.latent.clamp_(-self.scale, self.scale)
