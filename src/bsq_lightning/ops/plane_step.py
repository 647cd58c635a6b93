"""One step of SGD on the bit planes of many tensors, from the gradients of their weights alone.

With G = dL/dW, c_b = 2^b scale / (2^n - 1), momentum mu, rate lr, and k_b = weight decay + lasso_b / ||plane b||:

    v_p <- mu v_p + c_b G + k_b p      p <- clamp(p - lr v_p, 0, 2)
    v_q <- mu v_q - c_b G + k_b q      q <- clamp(q - lr v_q, 0, 2)
    v_s <- mu v_s + sum(G W) / scale + weight decay * scale      scale <- max(scale - lr v_s, 1e-8)
    W   <- clip(round(sum_b 2^b (p_b - q_b))) scale / (2^n - 1)

The gradients of planes have rank one, so none is ever stored; the trajectory is that of planes as Parameters under
autograd (Yang et al., ICLR 2021). ``plane_step_`` takes the fastest way that the tensors allow; all give the same
numbers up to rounding.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from bsq_lightning.ops import plane_step_cpu
from bsq_lightning.ops.bit_planes import merge_planes, plane_squares
from bsq_lightning.ops.plane_tensors import PlaneTensors, Rates, check_tensors

log = logging.getLogger(__name__)
SMALLEST_SCALE = 1e-8
_SPREAD = 0x9E3779B1  # 2^32 / golden ratio: neighbouring steps and tensors share no random numbers


@torch.no_grad()
def plane_step_(tensors: Sequence[PlaneTensors], rates: Rates) -> None:
    """The step above for every tensor of ``tensors``, in place.

    Raises:
        ValueError: more bits than the step is compiled for, or a part that does not fit the planes, as momentum after
            an adjustment that left it; ``check_tensors`` has the words.
    """
    rates = rates._replace(seed=rates.seed * _SPREAD % 2**31)
    groups: dict[tuple[str, torch.dtype, torch.device], list[PlaneTensors]] = {}
    for t in tensors:
        groups.setdefault((_fastest(t), t.planes.dtype, t.planes.device), []).append(t)
    for (way, _, _), group in groups.items():
        # Planes are contiguous; gradients and weights of a network in channels_last are brought into their order.
        dense = [t._replace(grad=t.grad.contiguous(), weight=t.weight.contiguous()) for t in group]
        IMPLEMENTATIONS[way](dense, rates)
        for t, own in zip(dense, group, strict=True):
            if t.weight is not own.weight:
                own.weight.copy_(t.weight)


def _fastest(t: PlaneTensors) -> str:
    """The key of ``IMPLEMENTATIONS`` that is the fastest of those that can do these tensors."""
    full, kept, device = t.weight.dtype, t.planes.dtype, t.weight.device.type
    usual = full in (torch.float32, torch.float64) and (kept == full or (full, kept) == (torch.float32, torch.bfloat16))
    # Gradients from elsewhere come from a penalty without a closed form, whose autograd pass costs much more.
    if t.extra is not None or not usual:
        return "torch"
    if device == "cpu" and plane_step_cpu.library() is not None:
        return "cpu"
    return "cuda" if device == "cuda" and _gpu_kernels_work(t.weight.device) else "torch"


@cache
def _gpu_kernels_work(device: torch.device) -> bool:
    """Whether Triton can compile and launch here: it needs a C compiler, Python's headers and a folder to write to."""
    one = torch.ones(1, device=device)
    planes = one.new_zeros(2, 1, 1)
    tensors = PlaneTensors(
        planes, planes.clone(), one, one.clone(), one[0].clone(), one[0].clone(), one, one.clone(), True
    )
    try:
        _plane_step_cuda_([tensors], Rates(0.0, 0.0, 0.0))
    except Exception as error:  # Triton's own are of many kinds
        log.info("Triton does not work here, so bit planes take their step in torch operations, with the same result, "
                 "slower: %s", str(error).strip()[-300:] or type(error).__name__)  # fmt: skip
        return False
    return True


@torch.no_grad()
def plane_step_torch_(tensors: Sequence[PlaneTensors], rates: Rates) -> None:
    """The step in torch operations, on any device."""
    check_tensors(tensors, contiguous=False)
    for index, t in enumerate(tensors):
        precision, ones = len(t.decay), [1] * t.weight.dim()
        levels = 2**precision - 1
        bits = torch.arange(precision, device=t.scale.device)
        coefficient = torch.exp2(bits.to(t.scale.dtype)) * (t.scale / levels)
        signed = torch.stack((coefficient, -coefficient)).view(2, -1, *ones)
        slope = (t.grad * t.weight).sum() / t.scale + rates.weight_decay * t.scale

        decay = (t.decay + rates.weight_decay).view(1, -1, *ones)
        full, chance = t.planes.dtype == t.weight.dtype, None
        momentum = t.momentum if full else t.momentum.to(t.weight.dtype)
        planes = t.planes if full else t.planes.to(t.weight.dtype)
        momentum.mul_(rates.momentum).addcmul_(planes, decay).addcmul_(t.grad, signed)
        if t.extra is not None:
            momentum.add_(t.extra[0])
            slope += t.extra[1]
        if not full:
            chance = torch.Generator(t.planes.device).manual_seed(rates.seed * len(tensors) + index)
            momentum = round_by_chance_(momentum, t.momentum, chance)
        planes.add_(momentum, alpha=-rates.lr).clamp_(0, 2)
        if not full:
            round_by_chance_(planes, t.planes, chance)
        t.scale_momentum.mul_(rates.momentum).add_(slope)
        t.scale.add_(t.scale_momentum, alpha=-rates.lr).clamp_(min=SMALLEST_SCALE)

        t.squares.copy_(plane_squares(t.planes))
        codes = merge_planes(t.planes).round_()
        t.weight.copy_((codes.clamp_(-levels, levels) if t.clip else codes) * (t.scale / levels))


def round_by_chance_(value: Tensor, target: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Writes float32 into bfloat16, up or down by chance, so that the mean is the value; returns what was written.

    Without it an update below 1/256 of a plane would be lost at every step.

    Example:
        >>> exact = torch.full((10000,), 1 + 1 / 1024)  # between 1 and 1 + 1/128
        >>> mean = round_by_chance_(exact, torch.empty(10000, dtype=torch.bfloat16)).mean()
        >>> abs(float(mean) - 1 - 1 / 1024) < 2e-4
        True
    """
    chance = torch.randint(2**16, value.shape, dtype=torch.int32, device=value.device, generator=generator)
    target.copy_((value.view(torch.int32) + chance).bitwise_and_(-(2**16)).view(torch.float32))
    return target.to(torch.float32)


def _plane_step_cuda_(tensors: Sequence[PlaneTensors], rates: Rates) -> None:
    from bsq_lightning.ops import plane_step_cuda  # imports Triton, which takes its time and is not everywhere

    plane_step_cuda.plane_step_(tensors, rates)


IMPLEMENTATIONS: dict[str, Callable[[Sequence[PlaneTensors], Rates], None]] = {
    "torch": plane_step_torch_,
    "cpu": plane_step_cpu.plane_step_,
    "cuda": _plane_step_cuda_,
}
"""Every way to take the step, for contiguous tensors on one device with planes of one dtype; a test holds each to the
first."""
