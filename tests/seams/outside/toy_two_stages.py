"""A stranger's method of two stages: one drops bits at every adjustment, the other trains on with what is left."""

from torch import nn

from bsq_lightning.quantizers import Adjustment, WeightQuantizer
from bsq_lightning.quantizers.base import check_precision


class DroppingQuantizer(WeightQuantizer):
    def __init__(self, weight, precision=8, drop=1):
        super().__init__()
        self.bits, self.drop, self.settled = check_precision("precision", precision), drop, False
        self.latent = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.scale = nn.Parameter(weight.detach().abs().max(), requires_grad=False)

    precision = property(lambda self: self.bits)
    shape = property(lambda self: tuple(self.latent.shape))

    def codes(self):
        top = 2**self.bits - 1
        return (self.latent.detach() / self.step()).round().clamp(-top, top)

    def latents(self):
        return (self.latent,)

    def latent_gradients(self, weight, grad):
        return (grad.clone(),)

    def adjust_precision_(self, bits=None):
        if self.settled:
            return Adjustment()
        self.bits = max(2, self.bits - self.drop)
        return Adjustment(may_move="bits were dropped", audit={"dropped": self.drop})

    def get_extra_state(self):
        return [self.bits, self.settled]

    def set_extra_state(self, state):
        self.bits, self.settled = state


def settle(network):
    for _, _, quantizer in network.quantizers():
        quantizer.settled = True
