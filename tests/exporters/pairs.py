"""Networks with random quantized weights and calibrated activations, as pairs of a plain module and its state."""

import copy
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from bsq_lightning.data.normalize import Normalize
from bsq_lightning.data.numpy_pickle import read_numpy_pickle
from bsq_lightning.exporters.pair import Rounding, state_key
from bsq_lightning.models import load_float_weights, resnet20
from bsq_lightning.ops.macs import count_macs
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState, QuantizedTensor
from tests.helpers import TinyNet

LAYERS = (nn.Conv2d, nn.Linear)
Pair = tuple[nn.Module, QuantizedState, Tensor]


def quantized_(net: nn.Module, bits: Callable[[int], int], channels: Callable[[int], bool], **kind: str) -> dict:
    """Rounds every layer's weights, in place; layer k gets ``bits(k)``, and steps per channel where ``channels(k)``."""
    tensors: dict[str, QuantizedTensor] = {}
    layers = [name for name, module in net.named_modules() if isinstance(module, LAYERS)]
    for place, name in enumerate(layers):
        weight = net.get_parameter(state_key(name))
        dims = tuple(range(1, weight.dim()))
        precision = bits(place)
        largest = weight.detach().abs().amax(dims, keepdim=True) if channels(place) else weight.detach().abs().max()
        top = 2**precision - 1
        step = largest / top if precision else torch.zeros(())
        codes = (weight.detach() / step).round().clamp(-top, top) if precision else torch.zeros_like(weight)
        tensors[name] = QuantizedTensor(codes.to(torch.int32), step.detach().clone(), precision, **kind)
        with torch.no_grad():
            weight.copy_(tensors[name].dequantize())
    return tensors


def calibrated(net: nn.Module, act_bits: int, images: Tensor) -> tuple[QuantizedActivation, ...]:
    """A site behind every ReLU: clipped at 6 at 4 bits and more, by a learned clip below, ranges of ``images``."""
    found: list[QuantizedActivation] = []
    clip = 6.0 if act_bits > 3 else 2.5
    net = copy.deepcopy(net)

    def observe(name: str) -> Callable:
        def hook(module: nn.Module, args: tuple, output: Tensor) -> Tensor:
            size = float(output.clamp(-clip, clip).max())
            found.append(QuantizedActivation(name, "output", act_bits, clip, size))
            return Rounding(found[-1])(output)

        return hook

    for name, module in net.named_modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(observe(name))
    with torch.no_grad():
        net.eval()(images)
    return tuple(found)


def shaken(net: nn.Module) -> nn.Module:
    """Batch norms that are not the identity."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, -1.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return net.eval()


def pair(net: nn.Module, bits: Callable[[int], int], act_bits: int, images: Tensor, **kind: str) -> Pair:
    """Network, state and images; every second layer has a step per channel."""
    tensors = quantized_(net, bits, lambda place: place % 2 == 1, **kind)
    activations = calibrated(net, act_bits, images) if act_bits else ()
    free = sum(p.numel() for p in net.parameters()) - sum(tensor.codes.numel() for tensor in tensors.values())
    return net, QuantizedState(tensors, activations, free, act_bits, count_macs(net, images.shape[-1])), images


def tiny(bits: int = 3, act_bits: int = 4) -> Pair:
    return pair(shaken(TinyNet()), lambda place: bits, act_bits, torch.randn(4, 3, 8, 8))


def deep(act_bits: int = 4) -> Pair:
    """ResNet-20 with 1 to 8 bits, and one layer of none."""
    scheme = torch.randint(1, 9, (22,)).tolist()
    scheme[3], scheme[5] = 0, 1
    return pair(shaken(resnet20()), lambda place: scheme[place], act_bits, torch.randn(4, 3, 32, 32))


#: Bits of the 22 layers of a ResNet-20, 2.5 on average over its weights.
SCHEME = (6, 3, 3, 2, 3, 1, 3, 4, 3, 3, 3, 2, 3, 2, 3, 2, 3, 3, 2, 3, 2, 5)


def cifar(folder: Path, file: str, count: int) -> tuple[Tensor, Tensor]:
    """The first real images, as a network takes them, and their labels."""
    content = read_numpy_pickle(folder / "cifar-10-batches-py" / file)
    pixels = torch.from_numpy(content["data"][:count]).view(-1, 3, 32, 32)
    return Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))(pixels), torch.tensor(
        content["labels"][:count]
    )


def real(folder: Path, count: int = 200, act_bits: int = 4) -> Pair:
    """The shared float ResNet-20, rounded at ``SCHEME`` without training, with real test images."""
    net = resnet20()
    load_float_weights(net, folder / "resnet20_cifar10_float.pt")
    calibration, _ = cifar(folder, "data_batch_1", 500)
    net, state, _ = pair(net.eval(), lambda place: SCHEME[place], act_bits, calibration)
    return net, state, cifar(folder, "test_batch", count)[0]
