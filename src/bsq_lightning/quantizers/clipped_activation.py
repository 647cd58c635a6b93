"""Activations whose range is fixed where the squared error is least."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bsq_lightning.distributed import largest_over_ranks_, of_all_ranks
from bsq_lightning.ops.step_search import best_candidate
from bsq_lightning.quantizers.activation import ActivationQuantizer, RoundToSteps
from bsq_lightning.quantizers.one_float import SMALLEST_SCALE

SAMPLES = 2**17  # values that the choice looks at


class ClippedActivation(ActivationQuantizer):
    """``s * round(clip(x, +-c) / s)`` with ``s = c / (2^k - 1)`` and a constant c, straight through the rounding.

    c is the clip of least squared error over the first training (or calibration) batch of all ranks. The largest
    activation of a batch, which the BSQ paper scales by, is far from it: at 4 bits it has twice the error. A constant
    is what hardware wants, and it costs less than to look for the maximum.

    Args:
        precision: bits k of magnitude, 1 to 16.

    Example:
        >>> quantizer = ClippedActivation(2)
        >>> images = torch.cat([torch.full((90,), 1.0), torch.full((9,), 2.0), torch.tensor([9.0])])
        >>> quantizer(images).unique(), quantizer.clip_value()
        (tensor([1.1250, 2.2500, 3.3750]), 3.375)
    """

    clip_at: Tensor

    def __init__(self, precision: int) -> None:
        super().__init__(precision)
        self.register_buffer("clip_at", torch.tensor(0.0))  # 0: there was no batch yet
        self._known: float | None = None

    @property
    def _top(self) -> int:
        return 2**self.precision - 1

    @torch.no_grad()
    def _choose(self, x: Tensor) -> None:
        values = x.detach().flatten()
        stride = -(-len(values) // SAMPLES) | 1  # odd: an even one takes all values from a few columns of the images
        values = values[::stride].to(torch.promote_types(x.dtype, torch.float32))
        if self.training:  # the batch is the one of all ranks together
            fewest = -largest_over_ranks_(torch.tensor(-len(values), device=x.device))
            values = of_all_ranks(values[: int(fewest)]).flatten()
        step = best_candidate(values.unsqueeze(0), self._top)[0].to(self.clip_at)[0]
        self.clip_at.copy_((step * self._top).clamp_min(SMALLEST_SCALE))

    def clip_value(self) -> float:
        return float(self.clip_at)

    def forward(self, x: Tensor) -> Tensor:
        if self._known is None:  # asks the device once
            if not bool(self.clip_at > 0):
                if not (self.training or self.observing):
                    return super().forward(x)
                self._choose(x)
            self._known = float(self.clip_at)
        if self.observing:
            self.range.copy_(self.clip_at)
        step = x.new_full((), self._known / self._top)
        return RoundToSteps.apply(F.hardtanh(x, -self._known, self._known), step)  # type: ignore[return-value]

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        super()._load_from_state_dict(*args, **kwargs)
        self._known = None
