"""What the authors' 2021 code does beside the method (github.com/yanghr/BSQ), kept out of everybody else's way.

``quant=bsq_reference`` names these, so that its runs can be repeated.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch

from bsq_lightning.network import QuantizedNetwork


class ClampFloats:
    """Clamps float parameters after every step, as the authors' loop clamps every parameter without "bn" or "scale" in
    its name: shortcut convolutions, their batch norm, and the clips of PACT.

    Args:
        patterns: name patterns of parameters of the network and of its activation quantizers; none need match.
        low: lower bound.
        high: upper bound.

    Example:
        >>> network = QuantizedNetwork(torch.nn.Sequential(torch.nn.BatchNorm2d(3)))
        >>> ClampFloats(["net.0.*"], 0.0, 0.5)(network)
        >>> network.net[0].weight.tolist()
        [0.5, 0.5, 0.5]
    """

    def __init__(self, patterns: Sequence[str], low: float, high: float) -> None:
        if not low <= high:
            raise ValueError(f"floats are clamped between low and high: low={low} is above high={high}")
        self.patterns, self.low, self.high = tuple(patterns), low, high

    @torch.no_grad()
    def __call__(self, network: QuantizedNetwork) -> None:
        quantized = {id(parameter) for _, parameter, _ in network.quantizers()}
        for name, parameter in network.named_parameters():
            floats = id(parameter) not in quantized and not name.startswith("weight_quantizers.")
            if floats and any(fnmatchcase(name, pattern) for pattern in self.patterns):
                parameter.clamp_(self.low, self.high)


@torch.no_grad()
def lose_biases(network: QuantizedNetwork) -> None:
    """Quantized biases become zero, as the authors' fine-tuning loses them (its forward asks for a deleted tensor)."""
    for name, parameter, _ in network.quantizers():
        if name.endswith(".bias"):
            parameter.zero_()
