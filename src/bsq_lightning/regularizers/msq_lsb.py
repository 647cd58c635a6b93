"""MSQ's penalty on the lowest bits, with its target and its choice of how many bits (ICCV 2025, arXiv 2507.22349)."""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bsq_lightning.quantizers import LatentStep, WeightQuantizer
from bsq_lightning.quantizers.msq import MSQQuantizer
from bsq_lightning.regularizers.base import Regularizer

SENSITIVITIES = ("none", "hutchinson")


class LowestBitsL1(Regularizer):
    """``alpha sum_l sum_i |u_i - q_i| / 2``, u = w / M of a layer and q its value without the k_l lowest bits.

    ``(u - q) / 2`` is the value of the lowest bits and of what rounding left, on the paper's scale [0, 1]. The gradient
    is ``alpha sign(u - q) / (2 M)``: every weight moves to the nearest code without the k_l bits.

    Until the next adjustment every layer has ``k_l`` bits pressed: one; with ``hessian=hutchinson`` two in the layers
    whose sensitivity is below the mean of all. Once the whole network is ``target_compression`` times smaller than
    32-bit floats (bits of magnitude, as the BSQ paper counts), no bit is pressed or dropped any more. MSQ is known here
    from secondary summaries; sensitivity as trace of the Hessian per weight times the squared change of W that
    dropping a bit makes is recalled from HAWQ-V2: both unverified.

    Args:
        alpha: strength, the paper's lambda.
        target_compression: where to stop; None: never.
        hessian: ``none`` or ``hutchinson``.

    Raises:
        ValueError: a target that is not above 1, or another way to the Hessian.

    Example:
        >>> quantizer = MSQQuantizer(torch.tensor([1.0, 0.375]), precision=3)  # 7/8 and 3/8; 1 and 2 quarters are near
        >>> float(LowestBitsL1(alpha=1.0).penalty({"layer": quantizer}))
        0.1875
    """

    def __init__(self, alpha: float, target_compression: float | None = None, hessian: str = "none") -> None:
        super().__init__(alpha)
        if target_compression is not None and not 1 < target_compression < math.inf:
            raise ValueError(f"reg.target_compression must be above 1, such as 16, or null, not {target_compression!r}")
        if hessian not in SENSITIVITIES:
            raise ValueError(f"reg.hessian is one of {', '.join(SENSITIVITIES)}, not {hessian!r}")
        self.target_compression = target_compression
        self.hessian = hessian

    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        layers = _layers(quantizers)
        if not layers:
            raise ValueError(f"reg=msq_lsb needs the codes of quant=msq; {self.instead(quantizers)}")
        if self.target_compression and _compression(layers) >= self.target_compression:
            raise ValueError(
                f"reg.target_compression={self.target_compression:g} is met before any training: at this "
                f"quant.precision it is {_compression(layers):.2f} x"
            )

    def penalty(self, quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        first = next(iter(quantizers.values()))
        terms = [quantizer.residual().abs().sum() for quantizer in _layers(quantizers).values() if quantizer.pressed]
        return self.alpha / 2 * torch.stack(terms).sum() if terms else first.scale.new_zeros(())

    def add_gradient_(self, steps: Mapping[str, LatentStep]) -> Tensor:
        """The closed form, without a graph."""
        total = next(iter(steps.values())).weight.new_zeros(())
        for step in steps.values():
            quantizer = step.quantizer
            if isinstance(quantizer, MSQQuantizer) and quantizer.pressed:
                residual = quantizer.residual().detach()
                total = total + residual.abs().sum()
                step.penalty_gradients = (residual.sign_().mul_(self.alpha / 2 / quantizer.scale),)
        return self.alpha / 2 * total

    def begin_interval(
        self, quantizers: Mapping[str, WeightQuantizer], traces: Callable[[], Mapping[str, float]]
    ) -> None:
        layers = _layers(quantizers)
        met = self.target_compression is not None and _compression(layers) >= self.target_compression
        pressed = dict.fromkeys(layers, 0 if met else 1)
        if self.hessian == "hutchinson" and any(pressed.values()):
            trace = traces()
            omega = {name: trace[name] * _change(layer) for name, layer in layers.items() if layer.precision}
            mean = sum(omega.values()) / max(1, len(omega))
            pressed |= {name: 2 for name, value in omega.items() if value < mean}
        for name, layer in layers.items():
            layer.lowest_bits = pressed[name]


def _layers(quantizers: Mapping[str, WeightQuantizer]) -> dict[str, MSQQuantizer]:
    return {name: quantizer for name, quantizer in quantizers.items() if isinstance(quantizer, MSQQuantizer)}


def _compression(layers: Mapping[str, MSQQuantizer]) -> float:
    sizes = {name: math.prod(layer.shape) for name, layer in layers.items()}
    bits = sum(sizes[name] * layer.precision for name, layer in layers.items())
    return 32 * sum(sizes.values()) / bits if bits else math.inf


def _change(layer: MSQQuantizer) -> float:
    """Mean squared change of a weight when the lowest bit goes; times the whole trace it is that of the layer."""
    return float((layer.lowest(1) * layer.step()).square().mean())
