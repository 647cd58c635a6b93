"""A stranger's quantizer: trains between the float weight and the rounded one, its step at a rate of its own."""

import torch
from torch import nn

from bsq_lightning.quantizers import LatentRate, WeightQuantizer
from bsq_lightning.quantizers.base import check_precision


class SoftQuantizer(WeightQuantizer):
    def __init__(self, weight, precision=4):
        super().__init__()
        self.bits, self.hardness = check_precision("precision", precision), 0.0
        self.latent = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.scale = nn.Parameter(weight.detach().abs().max(), requires_grad=False)

    precision = property(lambda self: self.bits)
    shape = property(lambda self: tuple(self.latent.shape))
    exact = property(lambda self: self.hardness == 1.0)

    def codes(self):
        top = 2**self.bits - 1
        return (self.latent.detach() / self.step()).round().clamp(-top, top)

    def training_weight(self, generator):
        return torch.lerp(self.latent.detach(), self.weight(), self.hardness)

    def on_epoch(self, progress):
        self.hardness = progress

    def latents(self):
        return self.latent, self.scale

    def latent_rates(self):
        return LatentRate(), LatentRate(lr_factor=0.1, weight_decay=0.0)

    def latent_gradients(self, weight, grad):
        return grad.clone(), (grad * self.weight()).sum() / self.scale * self.hardness

    def project_(self):
        self.scale.data.clamp_(min=1e-8)

    def get_extra_state(self):
        return self.bits

    def set_extra_state(self, state):
        self.bits = state
