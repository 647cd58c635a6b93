"""A stranger's penalty on weights, whatever quantizer they have."""

import torch

from bsq_lightning.regularizers import Regularizer


class WeightL1(Regularizer):
    on_weights = True

    def check(self, quantizers):
        if not quantizers:
            raise ValueError("nothing is quantized")

    def weight_penalty(self, weights, quantizers):
        return self.alpha * torch.stack([weight.abs().mean() for weight in weights.values()]).sum()
