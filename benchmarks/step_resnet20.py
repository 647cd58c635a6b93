"""A training step of ResNet-20, batch 128 at 32 px: BSQ at 8 bits and at a mean of 3, naive BSQ, against plain SGD."""

from benchmarks.harness import Report, Settings, alternate, compare
from benchmarks.sides import bsq_step, images, layer_sizes, mean_bits, mixed_precisions, naive_step, plain_step, resnet


def run(settings: Settings) -> Report:
    net = resnet(settings.choose(20, 8))
    batch = images(settings.choose(128, 4), 32, settings.device)
    three = mixed_precisions(net)
    sides = {
        "plain": plain_step(net, batch, settings.device),
        "BSQ at 8 bits": bsq_step(net, batch, settings.device),
        "BSQ at a mean of 3 bits": bsq_step(net, batch, settings.device, three),
        "naive BSQ at 8 bits": naive_step(net, batch, settings.device),
    }
    seconds = alternate(sides, settings.choose(40, 3), warmup=settings.choose(3, 1))
    report = Report()
    compare(report, "ResNet-20 step", seconds, {"BSQ at 8 bits": 1.04, "BSQ at a mean of 3 bits": 1.02})
    report.numbers |= {"precisions": three, "mean_bits": mean_bits(three, layer_sizes(net))}
    return report
