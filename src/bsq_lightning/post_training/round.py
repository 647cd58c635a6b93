"""Rounding to the nearest level: the plainest method, and the first step of the others."""

import torch
from torch import Tensor

from bsq_lightning.ops.step_search import best_candidate, codes_of, exact_step
from bsq_lightning.post_training.base import as_rows, check_whole, step_like
from bsq_lightning.quantized_tensor import QuantizedTensor

STEPS = ("max", "mse", "exact")


class Round:
    """``round(W / step)`` with n bits of magnitude and the sign extra: ``2^(n+1) - 1`` levels.

    Args:
        precision: bits n, 0 (W becomes zero) to 16.
        step: ``max`` covers the largest weight; ``mse`` is the best of 80 fractions of it, as ``ops.uniform.mse_step``;
            ``exact`` is the optimum over all steps, O(2^n) dearer.
        per_channel: a step for each output channel, else one for the tensor.

    Raises:
        ValueError: another number of bits, another step, or ``exact`` at more than 6 bits.

    Example:
        >>> tensor = Round(2, step="max")(torch.tensor([[0.9, -0.3], [0.0, 0.5]]))
        >>> tensor.codes.tolist(), tensor.storage_bits()
        ([[3, -1], [0, 2]], 12)
    """

    def __init__(self, precision: int, step: str = "mse", per_channel: bool = False) -> None:
        self.precision = check_whole("precision", precision, 0, 16)
        if step not in STEPS:
            raise ValueError(f"step is one of {', '.join(STEPS)}, not {step!r}")
        if step == "exact" and precision > 6:
            raise ValueError(f"the exact step is for 6 bits at most, not {precision}: take mse, the best of 80 steps")
        self.step, self.per_channel = step, per_channel

    @torch.no_grad()
    def __call__(self, weight: Tensor, *, inputs: Tensor | None = None) -> QuantizedTensor:
        """Rounds ``weight``; ``inputs`` are not looked at."""
        rows = as_rows(weight, channels=self.per_channel)
        top = 2**self.precision - 1
        if not top:
            steps = torch.zeros(len(rows), device=rows.device)
        elif self.step == "max":
            steps = rows.abs().amax(1) / top
        else:
            steps = exact_step(rows, top)[0] if self.step == "exact" else best_candidate(rows, top)[0]
        # Codes of the step as it is stored: in the dtype of W, so that no code is judged by another step than its own.
        codes = codes_of(rows, steps.to(weight.dtype), top).to(torch.int32)
        return QuantizedTensor(codes.view(weight.shape), step_like(steps, weight), self.precision)
