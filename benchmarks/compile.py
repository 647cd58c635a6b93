"""torch.compile of the plain network: recompilations that an adjustment causes, and the step's time."""

import torch
from torch._dynamo.utils import counters

from benchmarks.harness import Report, Settings, Spread, alternate, ratio
from benchmarks.sides import bsq, images, mixed_precisions, quantized, resnet, trained_step


def run(settings: Settings) -> Report:
    net = resnet(settings.choose(20, 8))
    batch = images(settings.choose(128, 4), 32, settings.device)
    torch._dynamo.reset()
    eager, compiled = quantized(net, device=settings.device), quantized(net, device=settings.device)
    compiled.net.compile(backend=settings.choose("inductor", "aot_eager"))
    optimizer = bsq(compiled)
    sides = {
        "eager": trained_step(eager, bsq(eager), batch),
        "compiled": trained_step(compiled, optimizer, batch),
    }
    seconds = alternate(sides, settings.choose(20, 2), warmup=settings.choose(3, 1))

    graphs, breaks = counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())
    # As after many adjustments, so that this one meets other numbers of planes than were compiled with.
    compiled.load_state_dict(quantized(net, precisions=mixed_precisions(net), device=settings.device).state_dict())
    compiled.adjust_precision_()
    optimizer.forget_momentum_()
    sides["compiled"]()
    recompiled = counters["stats"]["unique_graphs"] - graphs

    report = Report()
    report.add("recompilations at an adjustment", recompiled, at_most=0)
    report.add("ResNet-20 step, compiled / eager", ratio(seconds["compiled"], seconds["eager"]))
    for name, values in seconds.items():
        report.add(f"ResNet-20 step, {name}", Spread.of(values, 1000), "ms")
    report.numbers |= {"seconds": seconds, "graphs": graphs, "graph_breaks": breaks}
    return report
