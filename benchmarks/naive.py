"""BSQ as its equations read, with planes and scales as Parameters and autograd for everything.

It is the rival of the benchmarks and the oracle of the tests.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bsq_lightning.network import QuantizedNetwork


def naive_weight(planes: Tensor, scale: Tensor, clip: bool) -> Tensor:
    """``W = scale / (2^n - 1) * round(sum_b 2^b (p_b - q_b))``, straight through the rounding and the clip.

    Args:
        planes: ``[2, n, *S]``, least significant bit first.
        scale: 0-d.
        clip: whether codes are clipped to ``+-(2^n - 1)``.
    """
    precision = planes.shape[1]
    if not precision:
        return planes.sum((0, 1))
    worth = torch.exp2(torch.arange(precision, device=planes.device, dtype=planes.dtype))
    relaxed = torch.einsum("b,b...->...", worth, planes[0] - planes[1])
    codes = relaxed.detach().round()
    if clip:
        codes = codes.clamp(-(2**precision - 1), 2**precision - 1)
    return scale / (2**precision - 1) * (relaxed + (codes - relaxed).detach())


def naive_penalty(planes: Iterable[Tensor], alpha: float) -> Tensor:
    """``alpha / P_tot * sum_l P_l n_l sum_b sqrt(1e-8 + ||p_b||^2 + ||q_b||^2)`` over the planes of all layers."""
    layers = list(planes)
    total = sum(layer[0, 0].numel() if layer.shape[1] else layer.shape[2:].numel() for layer in layers)
    result = torch.zeros((), device=layers[0].device, dtype=layers[0].dtype)
    for layer in layers:
        for positive, negative in layer.transpose(0, 1):
            group = (positive.square().sum() + negative.square().sum() + 1e-8).sqrt()
            result = result + group * (positive.numel() * layer.shape[1] / total)
    return alpha * result


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
        """W of every layer, by the name of its Parameter."""
        return {
            key.replace("/", ".") + ".weight": naive_weight(
                planes, self.scales[key], clip=planes.shape[1] >= self.max_precision
            )
            for key, planes in self.planes.items()
        }

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.net, self.weights(), x)

    def penalty(self) -> Tensor:
        """The group lasso."""
        return naive_penalty(self.planes.values(), self.alpha)

    @torch.no_grad()
    def clamp_(self) -> None:
        """Planes back into [0, 2] after a step, scales to at least 1e-8."""
        for planes in self.planes.values():
            planes.clamp_(0, 2)
        for scale in self.scales.values():
            scale.clamp_(min=1e-8)
