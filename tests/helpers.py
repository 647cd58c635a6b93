"""The lists that drive the laws: a new implementation is one row here, with the oracle it is held to."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.naive import naive_weight
from bsq_lightning.quantizers import (
    PACT,
    ActivationQuantizer,
    BitPlaneQuantizer,
    CPQQuantizer,
    CSQQuantizer,
    FixedPointQuantizer,
    LatentQuantizer,
    WeightQuantizer,
    relu6_or_pact,
)
from bsq_lightning.quantizers.allocated import AllocatedQuantizer
from bsq_lightning.quantizers.clipped_activation import ClippedActivation
from bsq_lightning.quantizers.dorefa import DoReFaQuantizer
from bsq_lightning.quantizers.filter_bits import FilterQuantizer
from bsq_lightning.quantizers.lsq import LSQQuantizer
from bsq_lightning.quantizers.lsq_activation import LSQActivation
from bsq_lightning.quantizers.msq import MSQQuantizer
from bsq_lightning.quantizers.swis import SWISQuantizer
from bsq_lightning.regularizers import L1, BitGroupLasso, BitsliceL1, CSQBudget, DropBitsL0, Regularizer
from bsq_lightning.regularizers.msq_lsb import LowestBitsL1

Bounds = tuple[Tensor | float, Tensor | float]
ANYWHERE: Bounds = (-math.inf, math.inf)


@dataclass(frozen=True)
class Case:
    """A weight quantizer and what the laws hold it to.

    Args:
        build: called as ``build(tensor, precision=bits)``.
        relaxed: W as a function of ``latents()`` with the gradients its paper prescribes, for autograd; slow, obvious.
        bounds: for each of ``latents()``, the range that ``project_`` keeps it in.
        precisions: bits that the method has.
        disturb: moves the latents to where training may bring them.
        rounded: what of a weight tensor the method rounds to its nearest level.
        level: distance of two levels, in steps.
    """

    build: Callable[..., WeightQuantizer]
    relaxed: Callable[[WeightQuantizer], Tensor]
    bounds: Callable[[WeightQuantizer], Sequence[Bounds]]
    precisions: tuple[int, ...] = (1, 2, 5, 8)
    disturb: Callable[[WeightQuantizer], None] = lambda quantizer: shrink(quantizer)
    rounded: Callable[[Tensor], Tensor] = lambda tensor: tensor
    level: int = 1


def shrink(quantizer: WeightQuantizer) -> None:
    """Every latent times a random number below 1.5."""
    with torch.no_grad():
        for latent in quantizer.latents():
            latent.mul_(torch.rand_like(latent) * 1.5)


def relaxed_planes(quantizer: BitPlaneQuantizer) -> Tensor:
    """The sum of planes, straight through the rounding and the clip."""
    return naive_weight(quantizer.planes, quantizer.scale, quantizer.clip_always or quantizer.precision >= 8)


def empty_low_planes(quantizer: BitPlaneQuantizer) -> None:
    """Relaxed planes, of which the two lowest are empty now and then."""
    shrink(quantizer)
    with torch.no_grad():
        quantizer.planes[:, :2] *= torch.rand(()) < 0.5


def bounds_of_planes(quantizer: BitPlaneQuantizer) -> Sequence[Bounds]:
    return [(0.0, 2.0), ANYWHERE]


def relaxed_in_scale(quantizer: LatentQuantizer) -> Tensor:
    """``scale * latent``, straight through the rounding and the clip."""
    unit = quantizer.codes() / (2**quantizer.precision - 1)
    return quantizer.scale * (quantizer.latent + (unit - quantizer.latent).detach())


def relaxed_in_weight(quantizer: LatentQuantizer) -> Tensor:
    """The latent itself, straight through the rounding and the clip."""
    return quantizer.latent + (quantizer.weight() - quantizer.latent).detach()


def bounds_in_scale(quantizer: LatentQuantizer) -> Sequence[Bounds]:
    return [(-1.0, 1.0), ANYWHERE]


def bounds_in_weight(quantizer: LatentQuantizer) -> Sequence[Bounds]:
    return [(-quantizer.scale.detach(), quantizer.scale.detach())]


def anywhere(quantizer: WeightQuantizer) -> Sequence[Bounds]:
    return [ANYWHERE] * len(quantizer.latents())


def relaxed_lsq(quantizer: LSQQuantizer) -> Tensor:
    """The paper's pseudocode: the gradient of the step is scaled, its value is not; rounding is passed straight."""
    top = 2**quantizer.precision - 1
    step = quantizer.learned_step
    factor = 1 / math.sqrt(quantizer.latent.numel() / step.numel() * top)
    step = (step - step * factor).detach() + step * factor
    clipped = (quantizer.latent / step).clamp(-top, top)
    return (clipped.round() - clipped).detach() * step + clipped * step


def bounds_of_lsq(quantizer: LSQQuantizer) -> Sequence[Bounds]:
    return [ANYWHERE, (1e-8, math.inf)]


def tanh_to_one(tensor: Tensor) -> Tensor:
    return tensor.tanh() / tensor.tanh().abs().max()


def relaxed_dorefa(quantizer: DoReFaQuantizer) -> Tensor:
    """``scale * (2 x - 1)``, ``x = tanh(r) / (2 max|tanh(r)|) + 1/2`` straight through the rounding."""
    squashed = quantizer.latent.tanh()
    dims = tuple(range(1, squashed.dim())) if quantizer.per_channel else tuple(range(squashed.dim()))
    x = squashed / (2 * squashed.abs().amax(dims, keepdim=True)) + 0.5
    top = 2 ** (quantizer.precision + 1) - 1
    x = x + ((x * top).round() / top - x).detach()
    return quantizer.scale * (2 * x - 1)


def relaxed_csq(quantizer: CSQQuantizer) -> Tensor:
    """The soft weight, written out; plane by plane, with f(x) = 1 / (1 + exp(-T x))."""
    n, temperature = len(quantizer.mask), quantizer.temperature

    def f(x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-temperature * x))

    weight = torch.zeros(quantizer.shape, dtype=torch.float64)
    for b in range(n):
        bits = f(quantizer.planes[0, b]) - f(quantizer.planes[1, b])
        weight = weight + quantizer.scale * bits * 2**b / (2**n - 1) * f(quantizer.mask[b])
    return weight


def bounds_of_csq(quantizer: CSQQuantizer) -> Sequence[Bounds]:
    return [ANYWHERE, ANYWHERE, (1e-8, math.inf)]


def move_logits(quantizer: CSQQuantizer) -> None:
    """Logits of either sign, with some planes out."""
    with torch.no_grad():
        quantizer.planes.add_(torch.randn_like(quantizer.planes))
        quantizer.mask.normal_()


def relaxed_cpq(quantizer: CPQQuantizer) -> Tensor:
    """The mode, with the gradient of the mean over all levels; the step's also through the levels of the mode."""
    step, sigma, x = quantizer.log_step.exp(), quantizer.log_sigma.exp(), quantizer.latent
    k = torch.arange(1 - 2**quantizer.most, 2**quantizer.most, dtype=torch.float64)
    upper = torch.sigmoid((step * (k + 0.5) - x[..., None]) / sigma)
    pi = upper - torch.sigmoid((step * (k - 0.5) - x[..., None]) / sigma)
    pi = pi / pi.sum(-1, keepdim=True)
    mean = (pi * k * step.detach()).sum(-1)
    return quantizer.codes() * step + mean - mean.detach() + 0 * quantizer.logits.sum()


def bounds_of_cpq(quantizer: CPQQuantizer) -> Sequence[Bounds]:
    step = quantizer.log_step.detach()
    return [ANYWHERE, ANYWHERE, (step - math.log(100), step), (-8.0, 8.0)][: len(quantizer.latents())]


_planes = {"relaxed": relaxed_planes, "bounds": bounds_of_planes, "disturb": empty_low_planes}
_in_scale = {"relaxed": relaxed_in_scale, "bounds": bounds_in_scale}
_in_weight = {"relaxed": relaxed_in_weight, "bounds": bounds_in_weight}

QUANTIZERS: dict[str, Case] = {
    "bit_plane": Case(BitPlaneQuantizer, **_planes),
    "bit_plane_reference": Case(partial(BitPlaneQuantizer, clip_always=True, min_precision=1), **_planes),
    "latent_scale": Case(LatentQuantizer, **_in_scale),
    "latent_weight": Case(partial(LatentQuantizer, step="mse", units="weight"), **_in_weight),
    "latent_scale_per_channel": Case(partial(LatentQuantizer, per_channel=True), **_in_scale),
    "latent_weight_per_channel": Case(
        partial(LatentQuantizer, step="mse", units="weight", per_channel=True), **_in_weight
    ),
    "allocated": Case(AllocatedQuantizer, relaxed_in_weight, anywhere),
    "filters": Case(FilterQuantizer, relaxed_in_weight, anywhere),
    "lsq": Case(partial(LSQQuantizer, step_lr_factor=0.5), relaxed_lsq, bounds_of_lsq),
    "lsq_per_channel": Case(partial(LSQQuantizer, per_channel=True), relaxed_lsq, bounds_of_lsq),
    "dorefa": Case(DoReFaQuantizer, relaxed_dorefa, anywhere, rounded=tanh_to_one, level=2),
    "dorefa_per_channel": Case(partial(DoReFaQuantizer, per_channel=True), relaxed_dorefa, anywhere, level=2,
                               rounded=lambda tensor: torch.stack([tanh_to_one(channel) for channel in tensor])),
    "msq": Case(MSQQuantizer, relaxed_in_weight, anywhere),
    # Of 8 bits two are left: levels are up to 128 codes apart.
    "swis": Case(SWISQuantizer, **_in_weight, level=128),
    "swis_c": Case(partial(SWISQuantizer, shifts=8, consecutive=True), **_in_weight),
    "fixed_point": Case(FixedPointQuantizer, relaxed_in_weight, lambda quantizer: [ANYWHERE]),
    "cpq": Case(partial(CPQQuantizer, window=15), relaxed_cpq, bounds_of_cpq),
    "cpq_dropbits": Case(partial(CPQQuantizer, window=15, dropbits=True), relaxed_cpq, bounds_of_cpq),
    "csq": Case(CSQQuantizer, relaxed_csq, bounds_of_csq, disturb=move_logits),
}  # fmt: skip

#: Each with a quantizer that it acts on.
REGULARIZERS: dict[str, tuple[Callable[..., Regularizer], Callable[..., WeightQuantizer]]] = {
    "bit_group_lasso": (BitGroupLasso, BitPlaneQuantizer),
    "msq_lsb": (LowestBitsL1, MSQQuantizer),
    "l1": (L1, FixedPointQuantizer),
    "bitslice_l1": (BitsliceL1, FixedPointQuantizer),
    "bitslice_l1_of_planes": (BitsliceL1, BitPlaneQuantizer),
    "dropbits_l0": (DropBitsL0, partial(CPQQuantizer, dropbits=True)),
    "csq_budget": (CSQBudget, CSQQuantizer),
}

#: Methods that train at the steps of a plain network: weights, activations, penalty; each resumes and agrees on ranks.
METHODS: dict[str, tuple[Callable[..., WeightQuantizer], Callable[..., ActivationQuantizer], Regularizer | None]] = {
    "lsq": (LSQQuantizer, relu6_or_pact, None),
    "lsq_per_channel": (partial(LSQQuantizer, per_channel=True), relu6_or_pact, None),
    "clipped_activation": (LSQQuantizer, ClippedActivation, None),
    "lsq_activation": (LSQQuantizer, LSQActivation, None),
    "dorefa": (DoReFaQuantizer, relu6_or_pact, None),
    "pact": (partial(DoReFaQuantizer, scale="fit"), PACT, None),
    "swis": (SWISQuantizer, relu6_or_pact, None),
    "filters": (FilterQuantizer, relu6_or_pact, None),
    "msq": (partial(MSQQuantizer, threshold=0.45), relu6_or_pact, LowestBitsL1(0.01, hessian="hutchinson")),
}


class TinyNet(nn.Module):
    """Two convolutions with batch norm and a linear layer; enough for every kind of tensor."""

    relu_per_use = True

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.relu2(self.conv2(x)).mean((2, 3)))


def batch(n: int = 8, size: int = 6, classes: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, size, size, dtype=dtype), torch.randint(0, classes, (n,))
