"""A training step of torchvision's ResNet-50, batch 32 at 224 px, with the sides of step_resnet20."""

from benchmarks.harness import Report, Settings, SkipRow, alternate, compare, need_memory
from benchmarks.sides import (
    STATE_BYTES_NAIVE,
    bsq_step,
    images,
    layer_sizes,
    mean_bits,
    mixed_precisions,
    naive_step,
    plain_bytes,
    plain_step,
    resnet50,
)


def run(settings: Settings) -> Report:
    net = resnet50(settings)
    count, size = settings.choose((32, 224), (2, 32))
    batch = images(count, size, settings.device)
    sizes, three = layer_sizes(net), mixed_precisions(net)
    weights, plain = sum(sizes.values()), plain_bytes(net, count, size)
    ours = 128 * weights + 16 * int(weights * mean_bits(three, sizes))
    need_memory("ResNet-50 with plain SGD, BSQ at 8 bits and at 3", plain + ours, settings.device)
    report = Report()
    try:
        need_memory("naive BSQ beside the others", STATE_BYTES_NAIVE * weights + plain + ours, settings.device)
        beside = {"naive BSQ at 8 bits": naive_step(net, batch, settings.device)}
    except SkipRow as reason:
        print(reason, flush=True)
        report.add("ResNet-50 step, naive BSQ at 8 bits", f"left out: {reason}")
        beside = {}
    sides = {
        "plain": plain_step(net, batch, settings.device),
        "BSQ at 8 bits": bsq_step(net, batch, settings.device),
        "BSQ at a mean of 3 bits": bsq_step(net, batch, settings.device, three),
        **beside,
    }
    seconds = alternate(sides, settings.choose(7, 2), warmup=1)
    compare(report, "ResNet-50 step", seconds, {"BSQ at 8 bits": 1.12})
    report.numbers |= {"precisions": three, "mean_bits": mean_bits(three, sizes), "estimated_plain_bytes": plain}
    return report
