"""LatentOptimizer.step() alone on ResNet-50's planes, against the bytes it has to move at the speed of a copy."""

import torch

from benchmarks.harness import Report, Settings, Spread, alternate, need_memory, ratio
from benchmarks.sides import bsq, layer_sizes, mixed_precisions, quantized, resnet50


def necessary_bytes(precisions: dict[str, int], sizes: dict[str, int]) -> int:
    """2n planes and as many momenta read and written once, G read, W written, in float32: 32 n + 8 a weight."""
    return sum((32 * bits + 8) * sizes[name] for name, bits in precisions.items())


def run(settings: Settings) -> Report:
    net = resnet50(settings)
    sizes = layer_sizes(net)
    weights = sum(sizes.values())
    schemes = {"8 bits": dict.fromkeys(sizes, 8), "a mean of 3 bits": mixed_precisions(net)}
    need_memory("ResNet-50's planes and momentum, twice", 220 * weights, settings.device)
    sides = {}
    for name, precisions in schemes.items():
        network = quantized(net, precisions=precisions, device=settings.device)
        optimizer = bsq(network)
        for _, parameter, _ in network.quantizers():  # float parameters keep none: they are not stepped
            parameter.grad = 1e-3 * torch.randn_like(parameter)
        sides[name] = optimizer.step
    source = torch.ones(settings.choose(128, 1) * 2**20, device=settings.device)
    target = torch.empty_like(source)
    sides["copy"] = lambda: target.copy_(source)
    seconds = alternate(sides, settings.choose(15, 3), warmup=settings.choose(3, 1))

    report = Report()
    bandwidth = [2 * source.nbytes / s for s in seconds["copy"]]
    report.add("copy, read and written", Spread.of(bandwidth, 1e-9), "GB/s")
    for name, precisions in schemes.items():
        needed = necessary_bytes(precisions, sizes)
        reached = [needed / s / b for s, b in zip(seconds[name], bandwidth, strict=True)]
        report.add(f"ResNet-50 update at {name}", Spread.of(seconds[name], 1000), "ms")
        report.add(f"ResNet-50 update at {name}, of the copy's speed", Spread.of(reached), at_least=0.6)
        report.numbers[f"necessary bytes at {name}"] = needed
    three, eight = seconds["a mean of 3 bits"], seconds["8 bits"]
    report.add("ResNet-50 update at a mean of 3 bits / at 8", ratio(three, eight))
    report.numbers |= {"seconds": seconds, "weights": weights}
    return report
