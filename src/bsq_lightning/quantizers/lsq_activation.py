"""LSQ for activations: a learned step at every place (Esser et al., ICLR 2020, arXiv 1902.08153)."""

import math

import torch
from torch import Tensor, nn

from bsq_lightning.distributed import sum_over_ranks_, world_size
from bsq_lightning.quantizers.activation import ActivationQuantizer
from bsq_lightning.quantizers.base import LatentRate
from bsq_lightning.quantizers.one_float import SMALLEST_SCALE


class LSQActivation(ActivationQuantizer):
    """``s * clip(round(x / s), +-Q)``, ``Q = 2^k - 1``, with the gradients of ``LSQQuantizer``.

    The gradient of s is scaled by ``1 / sqrt(N Q)`` for N features of one image. s starts at ``2 mean|x| / sqrt(Q)``
    of the first training (or calibration) batch of all ranks; weight decay does not act on it. After a ReLU this is the
    paper's unsigned k bits.

    Args:
        precision: bits k of magnitude, 1 to 16.

    Example:
        >>> quantizer = LSQActivation(2)
        >>> quantizer(torch.tensor([[0.0, 1.0, 2.0, 9.0]])).detach(), round(quantizer.clip_value(), 4)
        (tensor([[ 0.0000,  0.0000,  3.4641, 10.3923]]), 10.3923)
    """

    rate = LatentRate(weight_decay=0.0)

    def __init__(self, precision: int) -> None:
        super().__init__(precision)
        self.learned_step = nn.Parameter(torch.tensor(0.0))  # 0: there was no batch yet
        self._started = False

    @property
    def _top(self) -> int:
        return 2**self.precision - 1

    @torch.no_grad()
    def _start(self, x: Tensor) -> None:
        # Asks the device once; a checkpoint may have brought the step.
        if not bool(self.learned_step):
            step = 2 * x.abs().mean(dtype=self.learned_step.dtype) / math.sqrt(self._top)
            if self.training:
                step = sum_over_ranks_(step) / world_size()
            self.learned_step.copy_(step.clamp_min(SMALLEST_SCALE))
        self._started = True

    def clip_value(self) -> float:
        return float(self.learned_step.detach()) * self._top

    def forward(self, x: Tensor) -> Tensor:
        if not self._started and (self.training or self.observing):
            self._start(x)
        # The gradient goes past the floor: a step that an update took below it comes back.
        floor = (SMALLEST_SCALE - self.learned_step.detach()).clamp_min(0)
        step = self.learned_step + floor
        if self.observing:
            self.range.copy_(step.detach() * self._top)
        factor = 1 / math.sqrt(x[0].numel() * self._top)
        step = ((step - step * factor).detach() + step * factor).to(x.dtype)
        clipped = (x / step).clamp(-self._top, self._top)
        return (clipped + (clipped.round() - clipped).detach()) * step
