"""BSQ: a weight tensor as relaxed bit planes with one scale (Yang et al., ICLR 2021, arXiv 2102.10462)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.ops.bit_planes import MAX_PRECISION, merge_planes, plane_squares, split_planes, trim_codes
from bsq_lightning.ops.plane_step import SMALLEST_SCALE, PlaneTensors, Rates, plane_step_
from bsq_lightning.ops.uniform import levels, max_step, quantize
from bsq_lightning.quantizers.base import Adjustment, LatentStep, WeightQuantizer, check_precision


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
        state_dtype: ``bfloat16`` keeps planes and momentum in 16 bits, rounded up or down by chance: half the memory,
            no longer exact. None keeps them as the weight is.

    Raises:
        ValueError: precision outside 1..max_precision, max_precision above 16, another state_dtype, or a tensor of
            zeros.

    Example:
        >>> quantizer = BitPlaneQuantizer(torch.tensor([1.0, -0.5, 0.25]), precision=2)
        >>> quantizer.codes(), quantizer.planes.shape
        (tensor([ 3., -2.,  1.]), torch.Size([2, 2, 3]))
    """

    steps_itself = True
    own_penalty = "bit_group_lasso"

    def __init__(
        self,
        weight: Tensor,
        precision: int = 8,
        max_precision: int = 8,
        clip_always: bool = False,
        min_precision: int = 0,
        state_dtype: str | None = None,
    ) -> None:
        super().__init__()
        self.max_precision = check_precision("quant.max_precision", max_precision)
        if check_precision("quant.precision", precision) > max_precision:
            raise ValueError(f"quant.precision={precision} is above quant.max_precision={max_precision}")
        if state_dtype not in (None, "bfloat16"):
            raise ValueError(f"quant.state_dtype is null (as the weights, exact) or bfloat16, not {state_dtype!r}")
        if state_dtype and weight.dtype != torch.float32:
            raise ValueError(
                f"quant.state_dtype=bfloat16 is for weights in float32, not in {weight.dtype}: leave it out"
            )
        if not bool(weight.any()):
            raise ValueError(
                "all weights are zero, so there is no scale to start from: give trained weights or skip it"
            )
        self.clip_always = clip_always
        self.min_precision = min_precision
        weight = weight.detach()
        codes = quantize(weight, max_step(weight, precision), precision)
        planes = split_planes(codes, precision).to(torch.bfloat16 if state_dtype else weight.dtype)
        self.planes = nn.Parameter(planes, requires_grad=False)
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
        return codes.clamp_(-levels(self.precision), levels(self.precision)) if self._clips else codes

    def relaxed(self) -> Tensor:
        """The sum of the planes, before it is rounded to codes."""
        return merge_planes(self.planes.detach()) * self.step()

    @property
    def _clips(self) -> bool:
        return self.clip_always or self.precision >= self.max_precision

    def latents(self) -> Sequence[nn.Parameter]:
        return self.planes, self.scale

    @classmethod
    @torch.no_grad()
    def sgd_steps_(cls, steps: Sequence[LatentStep], hyper: Mapping[str, float]) -> None:
        """SGD with momentum and weight decay on planes and scales, from G alone (``ops/plane_step.py``).

        ``state`` gets the momentum of ``planes`` and ``scale``, the ``squares`` of the planes for the next lasso, and
        the number of ``steps``, by which planes in 16 bits are rounded the same way on all ranks and after a resume.
        """
        steps = [step for step in steps if step.quantizer.precision]
        count = max((step.state.get("steps", 0) for step in steps), default=0)
        rates = Rates(hyper["lr"], hyper["momentum"], hyper["weight_decay"], seed=count)
        plane_step_([step.quantizer._tensors(step) for step in steps], rates)
        for step in steps:
            step.state["steps"] = count + 1

    def _tensors(self, step: LatentStep) -> PlaneTensors:
        state = step.state
        if not self.planes.is_contiguous():  # after to(memory_format=channels_last), which takes them for images
            self.planes.data = self.planes.contiguous()
        if not state:
            state["planes"] = torch.zeros_like(self.planes)
            state["scale"] = torch.zeros_like(self.scale)
        # torch's load_state_dict brings all state to the dtype of W.
        state["planes"] = state["planes"].to(self.planes.dtype)
        if "squares" not in state:
            state["squares"] = self.scale.new_zeros(self.precision)
        decay = step.decay if step.decay is not None else self.scale.new_zeros(self.precision)
        return PlaneTensors(
            self.planes, state["planes"], step.grad, step.weight, self.scale, state["scale"],
            decay.to(self.scale.dtype), state["squares"], clip=self._clips, extra=step.penalty_gradients,
        )  # fmt: skip

    @torch.no_grad()
    def project_(self) -> None:
        """Planes back into [0, 2], the scale to at least 1e-8."""
        self.planes.clamp_(0, 2)
        self.scale.clamp_(min=SMALLEST_SCALE)

    def squares(self, state: Mapping[str, Any]) -> Tensor:
        """``plane_squares`` of the planes now, ``[n]``; taken from ``state`` where the last step has computed them."""
        known = state.get("squares")
        # What is known of other bits than there are now is from before an adjustment.
        return known if known is not None and len(known) == self.precision else plane_squares(self.planes.detach())

    @torch.no_grad()
    def adjust_precision_(self, bits: int | None = None) -> Adjustment:
        """Re-quantization: the codes, not single planes, are rounded and expanded again; then both ends are trimmed.

        A code above ``2^n - 1`` brings one bit more (never beyond max_precision), an empty plane at either end goes,
        and the scale is set so that no weight moves. A tensor of zeros ends at min_precision bits.

        Args:
            bits: goes to so many bits instead: the lowest planes are rounded away, or empty ones are added.

        Raises:
            ValueError: bits outside 1..max_precision, or a tensor that is at 0 bits and cannot grow.
        """
        if bits is not None:
            return self._go_to(check_precision("bits", bits))
        norms = [round(float(norm), 4) for norm in plane_squares(self.planes).sqrt()]
        moves = "the 2021 code's clip against growth, which this quantizer repeats" if self.clip_always else ""
        done = Adjustment(moves, forget_momentum=True, audit={"plane_norms": norms})
        if not self.precision:
            return done
        step = self.step()
        codes = merge_planes(self.planes).round_()
        if self.precision >= self.max_precision:
            codes.clamp_(-levels(self.precision), levels(self.precision))
        codes, precision, shift = trim_codes(codes)
        precision = max(precision, self.min_precision)
        self.planes.data = split_planes(codes, precision).to(self.planes.dtype)
        if precision:
            self.scale.copy_(step * 2**shift * levels(precision))
        return done

    def _go_to(self, bits: int) -> Adjustment:
        if not self.precision or bits > self.max_precision:
            raise ValueError(f"{self.precision} bits of at most {self.max_precision} cannot be brought to {bits}")
        codes, step, lost = self.codes(), self.step(), self.precision - bits
        if lost > 0:
            codes, step = (codes / 2**lost).round_(), step * 2**lost
        self.planes.data = split_planes(codes.clamp_(-levels(bits), levels(bits)), bits).to(self.planes.dtype)
        self.scale.copy_(step * levels(bits))
        return Adjustment(f"brought to {bits} bits", forget_momentum=True)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        # Planes come and go with adjustments: the checkpoint, not the live tensor, says how many there are.
        saved = state_dict.get(prefix + "planes")
        if saved is not None:
            check_saved_planes(prefix + "planes", saved)
        if saved is not None and saved.dim() == self.planes.dim() and saved.shape[2:] == self.planes.shape[2:]:
            self.planes.data = self.planes.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def check_saved_planes(name: str, saved: Any) -> None:
    """Refuses planes of a checkpoint that no run has written, before anything is made in their size.

    Raises:
        ValueError: no dense tensor of real numbers, or planes of more bits than a step is compiled for.
    """
    if not isinstance(saved, Tensor) or saved.layout != torch.strided or not saved.is_floating_point():
        kind = f"{saved.dtype}, {saved.layout}" if isinstance(saved, Tensor) else type(saved).__name__
        raise ValueError(f"{name} holds {kind}, not a dense tensor of real numbers")
    if saved.dim() < 2 or saved.shape[0] != 2 or saved.shape[1] > MAX_PRECISION:
        raise ValueError(
            f"{name} is {list(saved.shape)}: planes are [2, bits, *shape of the weight], at most {MAX_PRECISION} bits"
        )
