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


def max_step(weight: Tensor, precision: int) -> Tensor:
    """Step with which the largest magnitude is the largest code: ``max|W| / (2^n - 1)``."""
    return weight.abs().max() / levels(precision)


def mse_step(weight: Tensor, precision: int, candidates: int = 80) -> Tensor:
    """Step of least squared error among ``candidates`` fractions of ``max_step``.

    Few bits waste their levels on rare large weights, so the best step is below the one that covers the maximum.

    Example:
        >>> weight = torch.tensor([0.1, -0.1, 0.1, 1.0])
        >>> bool(mse_step(weight, 2) <= max_step(weight, 2))
        True
    """
    largest = max_step(weight, precision)
    best, best_error = largest, torch.full_like(largest, float("inf"))
    for k in range(1, candidates + 1):
        step = largest * (k / candidates)
        error = (quantize(weight, step, precision) * step - weight).square().sum()
        best, best_error = torch.where(error < best_error, step, best), torch.minimum(error, best_error)
    return best
