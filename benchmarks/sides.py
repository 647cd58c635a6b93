"""The sides that rows compare: a training step of the plain network, of BSQ and of its naive form."""

import copy
import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Settings
from benchmarks.naive import NaiveBSQ
from bsq_lightning.models import ResNetCifar
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.tensor_bytes import saved_bytes
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, WeightQuantizer, relu6_or_pact
from bsq_lightning.regularizers import BitGroupLasso

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-4)
ALPHA = 5e-3
STATE_BYTES_NAIVE = 264  # a weight at 8 bits: planes, gradients and momentum 64 each, 72 kept for the backward pass


def resnet(depth: int) -> nn.Module:
    torch.manual_seed(0)
    return ResNetCifar(depth)


def resnet50(settings: Settings) -> nn.Module:
    """torchvision's; in a smoke test the smallest CIFAR ResNet stands in."""
    torch.manual_seed(0)
    return settings.choose(torchvision.models.resnet50, partial(ResNetCifar, 8))()


def quantized(
    net: nn.Module,
    weight: Callable[..., WeightQuantizer] = BitPlaneQuantizer,
    precisions: Mapping[str, int] | None = None,
    device: str = "cpu",
) -> QuantizedNetwork:
    """A copy of ``net`` with quantized weights, 8 bits if nothing else is asked, and activations of 4 bits."""
    skip = ["*.downsample.0"] if any(name.endswith("downsample.0") for name, _ in net.named_modules()) else []
    network = QuantizedNetwork(
        copy.deepcopy(net), weight, relu6_or_pact, precision=8, precisions=precisions, act_precision=4, skip=skip
    )
    return network.to(device)


def mixed_precisions(net: nn.Module, mean: float = 3.0) -> dict[str, int]:
    """1 to 8 bits a layer, fewer the larger and the later it is, as BSQ leaves them; their mean as near as can be."""
    sizes = layer_sizes(net)

    def bits(offset: float) -> dict[str, int]:
        return {
            name: min(8, max(1, round(offset - 0.75 * math.log2(size) - 2 * i / len(sizes))))
            for i, (name, size) in enumerate(sizes.items())
        }

    return min((bits(offset / 50) for offset in range(1200)), key=lambda found: abs(mean_bits(found, sizes) - mean))


def layer_sizes(net: nn.Module) -> dict[str, int]:
    """Quantized weights of every layer."""
    return {name: parameter.numel() for name, parameter, _ in quantized(net, LatentQuantizer).quantizers()}


def mean_bits(precisions: Mapping[str, int], sizes: Mapping[str, int]) -> float:
    """Bits per weight."""
    return sum(bits * sizes[name] for name, bits in precisions.items()) / sum(sizes.values())


def images(batch: int, size: int, device: str) -> tuple[Tensor, Tensor]:
    """Random images and labels."""
    return torch.randn(batch, 3, size, size, device=device), torch.randint(0, 10, (batch,), device=device)


def bsq(network: QuantizedNetwork) -> LatentOptimizer:
    """BSQ's optimizer over a network with bit planes."""
    return LatentOptimizer(network, SGD, BitGroupLasso(ALPHA))


def trained_step(
    net: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Tensor, Tensor], autocast: bool = False
) -> Callable[[], None]:
    """One training step as a function without arguments."""

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(batch[0].device.type, torch.bfloat16, enabled=autocast):
            logits = net(batch[0])
        F.cross_entropy(logits.float(), batch[1]).backward()
        optimizer.step()

    return step


def plain_step(net: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Callable[[], None]:
    """The same network and activation quantizers; torch's SGD steps the float weights themselves."""
    network = quantized(net, LatentQuantizer, device=device)  # for its activation quantizers; its latents stay
    return trained_step(network, SGD([p for p in network.parameters() if p.requires_grad]), batch)


def bsq_step(
    net: nn.Module, batch: tuple[Tensor, Tensor], device: str, precisions: Mapping[str, int] | None = None
) -> Callable[[], None]:
    """BSQ of this project."""
    network = quantized(net, precisions=precisions, device=device)
    return trained_step(network, bsq(network), batch)


def naive_step(net: nn.Module, batch: tuple[Tensor, Tensor], device: str) -> Callable[[], None]:
    """Planes as Parameters."""
    naive = NaiveBSQ(quantized(net, device=device), ALPHA).to(device)
    optimizer = SGD([p for p in naive.parameters() if p.requires_grad])

    def step() -> None:
        optimizer.zero_grad()
        (F.cross_entropy(naive(batch[0]), batch[1]) + naive.penalty()).backward()
        optimizer.step()
        naive.clamp_()

    return step


def plain_bytes(net: nn.Module, batch: int, size: int) -> int:
    """Estimate of what a plain training step holds: weights, gradients, momentum and activations.

    Double the activations: the quantizers' are not in the plain network, and the backward pass holds gradients of some.
    """
    return 16 * sum(p.numel() for p in net.parameters()) + 2 * saved_bytes(net, (batch, 3, size, size))
