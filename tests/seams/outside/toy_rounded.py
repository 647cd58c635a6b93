"""A stranger's method without training: rounds to a step for each output channel."""

from torch import nn

from bsq_lightning.ops.uniform import max_step, quantize
from bsq_lightning.quantizers import WeightQuantizer
from bsq_lightning.quantizers.base import check_precision


class RoundedQuantizer(WeightQuantizer):
    def __init__(self, weight, precision=4):
        super().__init__()
        self.bits = check_precision("precision", precision)
        step = max_step(weight.detach(), precision, per_channel=True).clamp_min(1e-8)
        self.scale = nn.Parameter(step * (2**precision - 1), requires_grad=False)
        self.kept = nn.Parameter(quantize(weight.detach(), step, precision), requires_grad=False)

    precision = property(lambda self: self.bits)
    shape = property(lambda self: tuple(self.kept.shape))

    def codes(self):
        return self.kept.detach()

    def latents(self):
        return ()
