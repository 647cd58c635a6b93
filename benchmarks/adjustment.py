"""QuantizedNetwork.adjust_precision_() of ResNet-50, from planes that training has left anywhere in [0, 2]."""

import torch
from torch.utils.benchmark import timer

from benchmarks.harness import Report, Settings, Spread, need_memory
from benchmarks.sides import layer_sizes, quantized, resnet50


def run(settings: Settings) -> Report:
    net = resnet50(settings)
    need_memory("ResNet-50's planes", 200 * sum(layer_sizes(net).values()), settings.device)
    network = quantized(net, device=settings.device)
    seconds = []
    for _ in range(settings.choose(6, 2)):
        with torch.no_grad():
            for _, _, quantizer in network.quantizers():
                for latent in quantizer.latents():
                    if latent.dim():
                        latent.add_(0.1 * torch.randn_like(latent)).clamp_(0, 2)
        start = timer()
        network.adjust_precision_()
        seconds.append(timer() - start)
    report = Report()
    bound = 2.0 if settings.device == "cpu" else 0.05
    report.add("adjustment of ResNet-50", Spread.of(seconds[1:]), "s", at_most=bound)  # the first one warms up
    report.numbers |= {"seconds": seconds, "bits": network.scheme().mean_precision}
    return report
