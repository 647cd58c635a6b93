"""What the rows share: settings, sides that alternate, the spread of what was measured, lines of the table."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch.utils.benchmark import timer  # waits for the device before it reads the clock

T = TypeVar("T")


class SkipRow(Exception):  # noqa: N818
    """This row cannot run here; the message says why."""


@dataclass(frozen=True)
class Settings:
    """What a row is asked for."""

    quick: bool = False
    threads: int = 1
    device: str = "cpu"
    full_epoch: bool = False

    def choose(self, full: T, quick: T) -> T:
        """``quick`` stands in for ``full`` in a smoke test."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float
    rounds: int

    @classmethod
    def of(cls, values: Sequence[float], factor: float = 1.0) -> "Spread":
        scaled = [factor * value for value in values]
        low, median, high = statistics.quantiles(scaled, n=4, method="inclusive") if len(scaled) > 1 else scaled * 3
        return cls(median, low, high, len(scaled))

    def __str__(self) -> str:
        return f"{_short(self.median)} [{_short(self.low)}, {_short(self.high)}]"


@dataclass
class Report:
    """What a row found: lines of the table, and every number behind them."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    numbers: dict[str, Any] = field(default_factory=dict)

    def add(
        self,
        what: str,
        reached: Spread | float | str,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """One line; a bound says what it is to reach."""
        value = reached.median if isinstance(reached, Spread) else reached
        line: dict[str, Any] = {"what": what, "reached": f"{_short(reached)} {unit}".strip(), "to_reach": ""}
        for sign, bound in (("<=", at_most), (">=", at_least)):
            if bound is not None:
                line["to_reach"] = f"{sign} {_short(bound)} {unit}".strip()
                if not isinstance(value, str):
                    # As precisely as it is shown: 128.0006 bytes are 128.
                    shown, limit = float(f"{value:.4g}"), float(f"{bound:.4g}")
                    line["met"] = shown <= limit if sign == "<=" else shown >= limit
        self.lines.append(line)
        self.numbers[what] = reached


def alternate(sides: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2) -> dict[str, list[float]]:
    """Seconds of every side in every round, one side after the other, so that all of them see the same machine."""
    for _ in range(warmup):
        for side in sides.values():
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    gc.collect()
    gc.disable()
    try:
        for _ in range(rounds):
            for name, side in sides.items():
                start = timer()
                side()
                seconds[name].append(timer() - start)
    finally:
        gc.enable()
    return seconds


def ratio(side: Sequence[float], base: Sequence[float]) -> Spread:
    """Of the ratios of the rounds, which a slow phase of the machine touches less than the ratio of medians."""
    return Spread.of([a / b for a, b in zip(side, base, strict=True)])


def compare(report: Report, what: str, seconds: dict[str, list[float]], bounds: Mapping[str, float]) -> None:
    """Adds milliseconds of every side and its ratio to the first one."""
    base = next(iter(seconds))
    for name, values in seconds.items():
        report.add(f"{what}, {name}", Spread.of(values, 1000), "ms")
        if name != base:
            report.add(f"{what}, {name} / {base}", ratio(values, seconds[base]), at_most=bounds.get(name))
    report.numbers["seconds"] = seconds


def free_bytes(device: str) -> int:
    """Memory that can still be taken on a device."""
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("MemAvailable"))


def need_memory(what: str, needed: int, device: str) -> None:
    """Raises SkipRow, with the estimate, where there is too little."""
    free = free_bytes(device)
    if needed > 0.9 * free:
        raise SkipRow(f"{what} needs about {needed / 1e9:.1f} GB and a tenth to spare, {free / 1e9:.1f} GB are free")


def _short(value: Any) -> str:
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
