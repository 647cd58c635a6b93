"""The product's one path against the oracle: planes as Parameters under autograd and SGD."""

import math
from functools import partial

import torch
from torch import Tensor

from bsq_lightning.models.resnet_cifar import ResNetCifar
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer
from bsq_lightning.regularizers import BitGroupLasso
from tests.helpers import batch
from tests.oracle import Oracle, same_bits

SGD = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-2}


def test_twenty_steps_and_an_adjustment_are_the_oracles() -> None:
    torch.manual_seed(3)
    net = ResNetCifar(8).double()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    names = [f"{name}.weight" for name, m in net.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))]
    network = QuantizedNetwork(net, partial(BitPlaneQuantizer, max_precision=5), precision=5)
    regularizer = BitGroupLasso(alpha=20.0)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, **SGD), regularizer)

    twin = ResNetCifar(8).double()
    twin.load_state_dict(state)
    oracle = Oracle(twin, names, 5, 5, 20.0, **SGD)

    worst, trimmed = 0.0, False
    for step in range(20):
        images, labels = batch(16, 8, 10, torch.float64)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        oracle.step(images, labels)
        if step == 11:
            before = network.scheme().mean_precision
            network.adjust_precision_()
            optimizer.forget_momentum_()
            oracle.adjust()
            trimmed = network.scheme().mean_precision < before
        assert same_bits(oracle, network.scheme())
        for name, parameter, quantizer in network.quantizers():
            layer = oracle.layers[f"{name}.weight"]
            pairs = [(quantizer.planes, layer.planes), (parameter, layer.weight())]
            pairs += [(quantizer.scale, layer.scale)] if layer.precision else []
            worst = max([worst, *(float((a - b).detach().abs().max()) for a, b in pairs if a.numel())])
        others = zip(net.named_parameters(), twin.named_parameters(), strict=True)
        worst = max(
            [worst, *(float((a - b).detach().abs().max()) for (name, a), (_, b) in others if name not in oracle.layers)]
        )
    print(f"largest difference {worst:.1e}, bits {network.scheme().precisions()}")
    assert trimmed, "nothing was trimmed, so the adjustment was not tried"
    assert network.scheme().mean_precision > 1, "hardly a bit is left, so little was compared"
    assert worst < 1e-12


def test_clipping_at_max_precision_is_the_oracles() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False)).double()
    network = QuantizedNetwork(net, partial(BitPlaneQuantizer, max_precision=3), precision=3)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=1.0, momentum=0.5))
    twin = torch.nn.Sequential(torch.nn.Linear(4, 4, bias=False)).double()
    twin.load_state_dict(net.state_dict())
    oracle = Oracle(twin, ["0.weight"], 3, 3, 0.0, lr=1.0, momentum=0.5)
    quantizer = network.quantizer("0")
    oracle.layers["0.weight"].load_state_dict(quantizer.state_dict())
    for _ in range(10):
        images, labels = torch.randn(6, 4, dtype=torch.float64) * 3, torch.randint(0, 4, (6,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        oracle.step(images, labels)
        assert torch.allclose(quantizer.weight(), oracle.layers["0.weight"].weight(), rtol=0, atol=1e-12)
    assert float(quantizer.planes.max()) == 2.0, "no plane reached its limit, so the clip was not tried"


def steps_until_empty(alpha: float, weight_decay: float, others: int) -> tuple[int, float]:
    """Steps until the LSB's largest element is below 1e-2 without data gradient, and the closed form."""
    lr = 0.02
    weight = torch.full((256,), 1.0, dtype=torch.float64)
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(256, 1, bias=False), "b": torch.nn.Linear(others, 1)}).double()
    net["a"].weight.data.copy_(weight.view(1, -1))
    network = QuantizedNetwork(net, BitPlaneQuantizer, precision=8)
    optimizer = LatentOptimizer(
        network, partial(torch.optim.SGD, lr=lr, momentum=0.0, weight_decay=weight_decay), BitGroupLasso(alpha)
    )
    planes: Tensor = network.quantizer("a").planes
    steps = 0
    while float(planes[:, 0].max()) >= 1e-2:
        optimizer.step()
        steps += 1
        assert steps < 10**6
    total = 256 + others
    g = alpha * 256 * 8 / total / math.sqrt(256)  # every one of the 256 codes is 255, so all LSBs are 1
    return steps, math.log(1 + weight_decay / g) / weight_decay / lr


def test_time_to_empty_an_lsb_plane_is_the_closed_form() -> None:
    """t0 = ln(1 + wd / g) / wd in units of lr, with g = alpha P n / (P_tot sqrt(#ones))."""
    for alpha, weight_decay, others in ((0.05, 1e-2, 256), (0.5, 1e-2, 1024), (0.2, 5e-2, 100)):
        steps, closed = steps_until_empty(alpha, weight_decay, others)
        assert abs(steps / closed - 1) < 0.05, (steps, closed)
