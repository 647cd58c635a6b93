"""Unpacking codes of every width, against a copy of what comes out into new memory, which is the least to write."""

import torch

from benchmarks.harness import Report, Settings, Spread, alternate
from bsq_lightning.ops.packing import pack, unpack


def run(settings: Settings) -> Report:
    report = Report()
    count = settings.choose(1 << 24, 1 << 18)
    for width in settings.choose((1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 17), (2, 3, 9)):
        half = 1 << (width - 1)
        codes = torch.randint(-half, half, (count,), dtype=torch.int32, device=settings.device)
        packed = pack(codes, width)
        seconds = alternate(
            {"copy": codes.clone, "unpack": lambda packed=packed, width=width: unpack(packed, width, count)},
            settings.choose(15, 2),
        )  # fmt: skip
        share = [copy / own for copy, own in zip(seconds["copy"], seconds["unpack"], strict=True)]
        report.add(f"unpacking {width} bits, share of the bandwidth of a copy", Spread.of(share))
        report.numbers[f"{width} bits, 1e9 codes a second"] = Spread.of([count / 1e9 / s for s in seconds["unpack"]])
        report.numbers[f"seconds of {width} bits"] = seconds
    return report
