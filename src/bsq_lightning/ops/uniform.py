"""Symmetric uniform quantization with one step for a whole tensor."""

import torch
from torch import Tensor


def levels(precision: int) -> int:
    """Largest code of ``precision`` magnitude bits, ``2^n - 1``; the sign is extra."""
    return 2**precision - 1


def quantize(weight: Tensor, step: Tensor | float, precision: int) -> Tensor:
    """Integer codes (as floats) of the nearest levels, half to even, clipped to ``+-(2^n - 1)``."""
    top = levels(precision)
    return (weight / step).round_().clamp_(-top, top)


def max_step(weight: Tensor, precision: int, per_channel: bool = False) -> Tensor:
    """Step with which the largest magnitude is the largest code: ``max|W| / (2^n - 1)``.

    Returns:
        0-d; with ``per_channel`` one for each output channel, ``[K, 1, ...]``.
    """
    dims = tuple(range(1, weight.dim()))
    largest = weight.abs().amax(dims, keepdim=True) if per_channel and dims else weight.abs().max()
    return largest / levels(precision)


def mse_step(weight: Tensor, precision: int, per_channel: bool = False, candidates: int = 80) -> Tensor:
    """Step of least squared error among ``candidates`` fractions of ``max_step``, of the same shape.

    Few bits waste their levels on rare large weights, so the best step is below the one that covers the maximum.

    Example:
        >>> weight = torch.tensor([0.1, -0.1, 0.1, 1.0])
        >>> bool(mse_step(weight, 2) <= max_step(weight, 2))
        True
    """
    largest = max_step(weight, precision, per_channel)
    best, best_error = largest, torch.full_like(largest, float("inf"))
    for k in range(1, candidates + 1):
        step = largest * (k / candidates)
        error = sum_like((quantize(weight, step, precision) * step - weight).square(), largest)
        # A channel of zeros has no step: its error is NaN, and the step of 0 stays.
        best, best_error = torch.where(error < best_error, step, best), torch.minimum(error, best_error)
    return best


def sum_like(values: Tensor, step: Tensor) -> Tensor:
    """The sum over all elements that share a step: 0-d, or ``[K, 1, ...]``."""
    return values.sum(tuple(range(1, values.dim())), keepdim=True) if step.dim() else values.sum()
