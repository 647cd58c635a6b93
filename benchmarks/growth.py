"""How the cost of BSQ grows with the network: its step, its update and its state, by depth and by width."""

import torch

from benchmarks.harness import Report, Settings, Spread, alternate, ratio
from benchmarks.sides import bsq, images, layer_sizes, plain_step, quantized, trained_step
from benchmarks.state import state_bytes
from bsq_lightning.models import ResNetCifar


def run(settings: Settings) -> Report:
    depths, widths = settings.choose((20, 32, 44, 56, 110), (8, 14)), settings.choose((2, 4), (2,))
    report = Report()
    for depth, width in [*((depth, 1) for depth in depths), *((depths[0], width) for width in widths)]:
        torch.manual_seed(0)
        net = ResNetCifar(depth, width=width)
        name = f"ResNet-{depth}" + (f" x{width}" if width > 1 else "")
        weights = sum(layer_sizes(net).values())
        batch = images(settings.choose(128, 4), 32, settings.device)
        network = quantized(net, device=settings.device)
        optimizer = bsq(network)
        sides = {
            "plain": plain_step(net, batch, settings.device),
            "BSQ": trained_step(network, optimizer, batch),
            "update": optimizer.step,  # with the gradients of the step before
        }
        seconds = alternate(sides, settings.choose(12, 2), warmup=settings.choose(2, 1))
        report.add(f"{name}, {weights:,} weights: BSQ step / plain", ratio(seconds["BSQ"], seconds["plain"]))
        report.add(f"{name}: update", Spread.of(seconds["update"], 1000), "ms")
        report.add(f"{name}: state", state_bytes(net, settings.device) * weights / 1e6, "MB")
        report.numbers[f"seconds of {name}"] = seconds
    return report
