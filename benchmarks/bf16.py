"""Images per second of BSQ training in float32, under bf16 autocast, channels last, and both."""

import torch
from torch import nn

from benchmarks.harness import Report, Settings, Spread, alternate, need_memory, ratio
from benchmarks.sides import bsq, images, layer_sizes, plain_bytes, quantized, resnet, resnet50, trained_step

SIDES = {  # autocast, channels last
    "float32": (False, False),
    "channels last": (False, True),
    "bf16": (True, False),
    "bf16 and channels last": (True, True),
}


def run(settings: Settings) -> Report:
    report = Report()
    measure(report, "ResNet-20", resnet(settings.choose(20, 8)), settings, *settings.choose((128, 32, 15), (4, 32, 2)))
    measure(report, "ResNet-50", resnet50(settings), settings, *settings.choose((8, 224, 4), (2, 32, 2)))
    return report


def measure(report: Report, name: str, net: nn.Module, settings: Settings, count: int, size: int, rounds: int) -> None:
    """Adds the sides of one network. The planes stay in float32 and contiguous; only the network's copy changes."""
    batch = images(count, size, settings.device)
    need_memory(
        f"{name}, twice", 2 * (144 * sum(layer_sizes(net).values()) + plain_bytes(net, count, size)), settings.device
    )
    sides = {}
    for channels_last in (False, True):
        network, pixels = quantized(net, device=settings.device), batch[0]
        if channels_last:
            network.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        optimizer = bsq(network)
        for side in (side for side, (_, last) in SIDES.items() if last == channels_last):
            sides[side] = trained_step(network, optimizer, (pixels, batch[1]), autocast=SIDES[side][0])
    sides = {side: sides[side] for side in SIDES}
    seconds = alternate(sides, rounds, warmup=1)
    for side, values in seconds.items():
        report.add(f"{name}, {side}", Spread.of([count / s for s in values]), "images/s")
        if side != "float32":
            report.add(f"{name}, {side} / float32", ratio(seconds["float32"], values), "x the speed")
    report.numbers[f"seconds of {name}"] = seconds
