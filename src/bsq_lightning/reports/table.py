"""Rows of the table: runs that differ only by their seed are one row, with mean and spread."""

import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from bsq_lightning.reports.runs import COUNTINGS, Run
from bsq_lightning.reports.settings import Setting, differences

#: From so many points on, colours say more than lines and legends do.
MANY = 13


@dataclass(frozen=True)
class Spread:
    """Mean, sample standard deviation (None for one value), number of values, the smallest and the largest."""

    mean: float
    std: float | None
    n: int
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Spread | None":
        """Of the values that are there; None of none.

        Example:
            >>> Spread.of([1.0, None, 3.0])
            Spread(mean=2.0, std=1.4142135623730951, n=2, low=1.0, high=3.0)
        """
        known = [value for value in values if value is not None]
        if not known:
            return None
        std = statistics.stdev(known) if len(known) > 1 else None
        return cls(statistics.fmean(known), std, len(known), min(known), max(known))


@dataclass(frozen=True)
class Row:
    """One setting. Accuracies and sizes are those of its finished runs."""

    label: str
    curve: str
    setting: Setting
    runs: tuple[Run, ...]
    joined: bool = True  # with others of its curve, by a line along the knob

    @cached_property
    def done(self) -> list[Run]:
        return [run for run in self.runs if run.state == "done"]

    @cached_property
    def test_accuracy(self) -> Spread | None:
        return Spread.of(run.test_accuracy for run in self.done)

    @property
    def val_accuracy(self) -> Spread | None:
        return Spread.of(run.val_accuracy for run in self.done)

    @property
    def mean_precision(self) -> Spread | None:
        return None if self.setting.method == "float" else Spread.of(run.mean_precision for run in self.done)

    @property
    def gbops(self) -> Spread | None:
        """Bit operations of one image in 1e9."""
        return None if self.setting.method == "float" else Spread.of(run.gbops for run in self.done)

    @property
    def seconds(self) -> Spread | None:
        return Spread.of(run.seconds for run in self.done)

    def compression(self, counting: str) -> Spread | None:
        """Times smaller than in float; None where no bit is left or nothing is quantized."""
        return self._compressions.get(counting)

    @cached_property
    def _compressions(self) -> dict[str, Spread | None]:
        if self.setting.method == "float":
            return {}
        return {
            counting: Spread.of(run.sizes.get(counting, {}).get("compression") for run in self.done)
            for counting in COUNTINGS
        }

    def kilobytes(self, counting: str) -> Spread | None:
        """Size in kB (1000 bytes)."""
        bits = [run.sizes.get(counting, {}).get("bits") for run in self.done]
        return Spread.of(None if value is None else value / 8000 for value in bits)


def rows(runs: list[Run]) -> list[Row]:
    """Rows of one group, by method and size; labels tell apart what method and knob alone do not."""
    same: dict[str, list[Run]] = {}
    for run in runs:
        if run.setting is not None:
            same.setdefault(run.setting.key, []).append(run)
    firsts = {key: members[0].setting for key, members in same.items()}
    settings = {key: setting for key, setting in firsts.items() if setting is not None}
    labels = _told_apart({key: _label(setting, same[key]) for key, setting in settings.items()}, settings)
    curves = {setting.curve: setting for setting in settings.values()}
    curve_labels = _told_apart({curve: setting.method for curve, setting in curves.items()}, curves, knob=True)
    drawn = _drawn(settings)
    result = []
    for key, setting in settings.items():
        members = tuple(sorted(same[key], key=_by_seed))
        if key in drawn:
            cloud, difference = drawn[key]
            result.append(Row(f"{_label(setting, same[key])} ({difference})", cloud, setting, members, joined=False))
        else:
            result.append(Row(labels[key], curve_labels[setting.curve], setting, members))
    return sorted(result, key=_order)


def _drawn(settings: dict[str, Setting]) -> dict[str, tuple[str, str]]:
    """Points whose settings a sweeper drew, so that no two lie on one curve: the name of all of a method in the place
    of a curve for each, and in what a point differs."""
    lone: dict[str, list[str]] = {}
    curves = Counter(setting.curve for setting in settings.values())
    for key, setting in settings.items():
        if setting.knob is not None and curves[setting.curve] == 1:
            lone.setdefault(setting.method, []).append(key)
    result = {}
    for method, keys in lone.items():
        if len(keys) >= MANY:
            told = differences([settings[key].without_knob() for key in keys])
            names = " and ".join(part.partition("=")[0] for part in told[0].split(", ") if "=" in part)
            result |= {
                key: (f"{method}, each with its own {names}", text) for key, text in zip(keys, told, strict=True)
            }
    return result


def _order(row: Row) -> tuple[int, bool, str, float, str]:
    setting = row.setting
    return _kind(setting), setting.knob_value is None, row.curve, _knob(setting), row.label


def _label(setting: Setting, runs: list[Run]) -> str:
    """Method and knob; where the knob is no number (a scheme), the bits that it gives."""
    bits = Spread.of(run.mean_precision for run in runs)
    if setting.knob is None or setting.knob_value is not None or bits is None:
        return setting.label
    return f"{setting.label}, {bits.mean:.2f} bits"


def _kind(setting: Setting) -> int:
    """Float first, then the lines to beat, then what has no knob, then methods."""
    if setting.method == "float":
        return 0
    return 1 if setting.baseline else 2 if setting.knob is None else 3


def _told_apart(labels: dict[str, str], settings: dict[str, Setting], knob: bool = False) -> dict[str, str]:
    by_label: dict[str, list[str]] = {}
    for key, label in labels.items():
        by_label.setdefault(label, []).append(key)
    result = dict(labels)
    for label, keys in by_label.items():
        if len(keys) > 1:
            members = [settings[key] for key in keys]
            flats = [each.without_knob() if knob else each.flat for each in members]
            for key, difference in zip(keys, differences(flats), strict=True):
                result[key] = f"{label} ({difference})" if difference else label
    return result


def _knob(setting: Setting) -> float:
    value = setting.knob_value or 0.0
    return -value if setting.knob == "quant.precision" else value


def _by_seed(run: Run) -> tuple[int, str]:
    seed = run.setting.seed if run.setting and run.setting.seed is not None else 0
    return seed, run.name
