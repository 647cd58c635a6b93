"""The rival: BSQ as its equations read, with planes and scales as Parameters and autograd for everything."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bsq_lightning.network import QuantizedNetwork


class NaiveBSQ(nn.Module):
    """A quantized network whose weights are composed of planes inside the graph, one layer after the other.

    Args:
        network: gives the plain network, the activation quantizers, and codes and steps to start from.
        alpha: strength of the group lasso.
        max_precision: bits at which codes are clipped.
    """

    def __init__(self, network: QuantizedNetwork, alpha: float, max_precision: int = 8) -> None:
        super().__init__()
        self.net, self.alpha, self.max_precision = network.net, alpha, max_precision
        self.activation_quantizers = network.activation_quantizers
        self.planes, self.scales = nn.ParameterDict(), nn.ParameterDict()
        for name, parameter, quantizer in network.quantizers():
            parameter.requires_grad_(False)
            key, codes = name.replace(".", "/"), quantizer.codes()
            worth = [2.0**b for b in range(quantizer.precision)]
            signs = [[(sign * codes).clamp(min=0).div(w).floor().remainder(2) for w in worth] for sign in (1, -1)]
            self.planes[key] = nn.Parameter(torch.stack([torch.stack(planes) for planes in signs]))
            self.scales[key] = nn.Parameter(quantizer.step() * (2**quantizer.precision - 1))

    def weights(self) -> dict[str, Tensor]:
        """W = scale / (2^n - 1) * round(sum_b 2^b (p_b - q_b)), straight through the rounding."""
        found = {}
        for key, planes in self.planes.items():
            precision = planes.shape[1]
            worth = torch.exp2(torch.arange(precision, device=planes.device, dtype=planes.dtype))
            relaxed = torch.einsum("b,b...->...", worth, planes[0] - planes[1])
            codes = relaxed.detach().round()
            if precision >= self.max_precision:
                codes = codes.clamp(-(2**precision - 1), 2**precision - 1)
            codes = relaxed + (codes - relaxed).detach()
            found[key.replace("/", ".") + ".weight"] = self.scales[key] / (2**precision - 1) * codes
        return found

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.net, self.weights(), x)

    def penalty(self) -> Tensor:
        """alpha / P_tot * sum_l P_l n_l sum_b ||[p_b, q_b]||."""
        total = sum(planes[0, 0].numel() for planes in self.planes.values())
        result = torch.zeros((), device=next(iter(self.scales.values())).device)
        for planes in self.planes.values():
            groups = torch.cat((planes[0].flatten(1), planes[1].flatten(1)), dim=1)
            norms = (groups.square().sum(1) + 1e-8).sqrt()
            result = result + norms.sum() * (planes[0].numel() / total)
        return self.alpha * result

    @torch.no_grad()
    def clamp_(self) -> None:
        """Planes back into [0, 2] after a step, scales to at least 1e-8."""
        for planes in self.planes.values():
            planes.clamp_(0, 2)
        for scale in self.scales.values():
            scale.clamp_(min=1e-8)
