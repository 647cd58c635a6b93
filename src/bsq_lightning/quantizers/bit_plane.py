"""BSQ: a weight tensor as relaxed bit planes with one scale (Yang et al., ICLR 2021, arXiv 2102.10462)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.ops.bit_planes import merge_planes, split_planes, trim_codes
from bsq_lightning.ops.uniform import levels, max_step, quantize
from bsq_lightning.quantizers.base import WeightQuantizer, check_precision

SMALLEST_SCALE = 1e-8


class BitPlaneQuantizer(WeightQuantizer):
    """``W = scale / (2^n - 1) * round(sum_b 2^b (p_b - q_b))`` with planes p, q in [0, 2].

    With c_b = 2^b / (2^n - 1) and G = dL/dW the gradients have rank one over the planes, so none is ever stored:
    dL/dp_b = scale c_b G, dL/dq_b = -scale c_b G, dL/dscale = sum(G W) / scale.

    Args:
        weight: the float tensor to start from; its largest magnitude becomes the scale.
        precision: bits of magnitude n at the start.
        max_precision: bits that no adjustment exceeds; codes are clipped to ``+-(2^n - 1)`` there, and only there,
            because one adjustment can add the bit that a larger code needs.
        clip_always: clip at every precision, as the authors' 2021 code does (their forward and their adjustment
            disagree where a layer grows).
        min_precision: bits that an adjustment leaves to a tensor of zeros; the 2021 code keeps 1.

    Raises:
        ValueError: precision outside 1..max_precision, max_precision above 16, or a tensor of zeros.

    Example:
        >>> quantizer = BitPlaneQuantizer(torch.tensor([1.0, -0.5, 0.25]), precision=2)
        >>> quantizer.codes(), quantizer.planes.shape
        (tensor([ 3., -2.,  1.]), torch.Size([2, 2, 3]))
    """

    steps_itself = True

    def __init__(
        self,
        weight: Tensor,
        precision: int = 8,
        max_precision: int = 8,
        clip_always: bool = False,
        min_precision: int = 0,
    ) -> None:
        super().__init__()
        self.max_precision = check_precision("quant.max_precision", max_precision)
        if check_precision("quant.precision", precision) > max_precision:
            raise ValueError(f"quant.precision={precision} is above quant.max_precision={max_precision}")
        if not bool(weight.any()):
            raise ValueError(
                "all weights are zero, so there is no scale to start from: give trained weights or skip it"
            )
        self.clip_always = clip_always
        self.min_precision = min_precision
        weight = weight.detach()
        codes = quantize(weight, max_step(weight, precision), precision)
        self.planes = nn.Parameter(split_planes(codes, precision), requires_grad=False)
        self.scale = nn.Parameter(weight.abs().max(), requires_grad=False)

    @property
    def precision(self) -> int:
        return self.planes.shape[1]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.planes.shape[2:])

    def codes(self) -> Tensor:
        """Signed integer codes; clipped to ``+-(2^n - 1)`` at max_precision (or everywhere, if so built)."""
        codes = merge_planes(self.planes.detach()).round_()
        if self.clip_always or self.precision >= self.max_precision:
            codes.clamp_(-levels(self.precision), levels(self.precision))
        return codes

    def latents(self) -> Sequence[nn.Parameter]:
        return self.planes, self.scale

    @torch.no_grad()
    def sgd_step_(
        self,
        weight: Tensor,
        grad: Tensor,
        state: dict[str, Any],
        hyper: Mapping[str, float],
        plane_decay: Tensor | None,
        penalty_gradients: Sequence[Tensor] | None,
    ) -> None:
        """SGD with momentum and weight decay on planes and scale, from G alone.

        Args:
            weight: W as the network used it.
            grad: G, shape of W.
            state: the optimizer's state of this tensor: momentum of ``planes`` and ``scale``.
            hyper: ``lr``, ``momentum`` and ``weight_decay``.
            plane_decay: ``[n]``, a closed-form penalty whose gradient is ``plane_decay[b] * planes[:, b]``.
            penalty_gradients: gradients of any other penalty, shaped as ``latents()``.
        """
        if not self.precision:
            return
        if not state:
            state["planes"] = torch.zeros_like(self.planes)
            state["scale"] = torch.zeros_like(self.scale)
        ones = [1] * weight.dim()
        decay = self.planes.new_full((self.precision,), hyper["weight_decay"])
        if plane_decay is not None:
            decay += plane_decay
        bits = torch.arange(self.precision, device=self.planes.device)
        coefficient = torch.exp2(bits.to(self.scale.dtype)) * self.step()
        signed = torch.stack((coefficient, -coefficient)).view(2, -1, *ones)

        momentum = state["planes"]
        momentum.mul_(hyper["momentum"]).addcmul_(self.planes, decay.view(1, -1, *ones)).addcmul_(grad, signed)
        slope = (grad * weight).sum() / self.scale + hyper["weight_decay"] * self.scale
        if penalty_gradients is not None:
            momentum.add_(penalty_gradients[0])
            slope += penalty_gradients[1]
        state["scale"].mul_(hyper["momentum"]).add_(slope)
        self.planes.add_(momentum, alpha=-hyper["lr"])
        self.scale.add_(state["scale"], alpha=-hyper["lr"])

    @torch.no_grad()
    def project_(self) -> None:
        """Planes back into [0, 2], the scale to at least 1e-8."""
        self.planes.clamp_(0, 2)
        self.scale.clamp_(min=SMALLEST_SCALE)

    @torch.no_grad()
    def adjust_precision_(self) -> None:
        """Re-quantization: the codes, not single planes, are rounded and expanded again; then both ends are trimmed.

        A code above ``2^n - 1`` brings one bit more (never beyond max_precision), an empty plane at either end goes,
        and the scale is set so that no weight moves. A tensor of zeros ends at min_precision bits.
        """
        if not self.precision:
            return
        step = self.step()
        codes = merge_planes(self.planes).round_()
        if self.precision >= self.max_precision:
            codes.clamp_(-levels(self.precision), levels(self.precision))
        codes, precision, shift = trim_codes(codes)
        precision = max(precision, self.min_precision)
        self.planes.data = split_planes(codes, precision)
        if precision:
            self.scale.copy_(step * 2**shift * levels(precision))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        # Planes come and go with adjustments: the checkpoint, not the live tensor, says how many there are.
        saved = state_dict.get(prefix + "planes")
        if saved is not None and saved.dim() == self.planes.dim() and saved.shape[2:] == self.planes.shape[2:]:
            self.planes.data = self.planes.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
