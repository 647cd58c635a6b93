"""What the page's figures are drawn from, as compact plain data: rounded numbers, bits only where they change."""

from math import isfinite
from typing import Any

from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.front import accuracy_bar, float_accuracy
from bsq_lightning.reports.published import published_points
from bsq_lightning.reports.runs import COUNTINGS, CURVES, Run
from bsq_lightning.reports.table import MANY, Row, Spread


def page_data(collection: Collection) -> dict[str, Any]:
    """All figures of the page; runs are referred to by their place in ``runs``."""
    places = {id(run): i for i, run in enumerate(collection.runs)}
    groups = [_group(key, table, places) for key, table in collection.tables.items()]
    labels = {place: point["label"] for group in groups for point in group["rows"] for place in point["runs"]}
    return {"groups": groups, "runs": [_run(run, labels.get(i, "")) for i, run in enumerate(collection.runs)]}


def rounded(value: float | None, digits: int = 4) -> float | None:
    """A float with so many significant digits; None for what JSON cannot hold.

    Example:
        >>> rounded(0.123456), rounded(float("nan")), rounded(None)
        (0.1235, None, None)
    """
    if value is None or not isfinite(value):
        return None
    return float(f"%.{digits}g" % value)


def _group(key: tuple[str, str], table: list[Row], places: dict[int, int]) -> dict[str, Any]:
    runs = [run for row in table for run in row.runs]
    points = [_row(row, places) for row in table]
    acts = {run.setting.act_precision for run in runs if run.setting and run.setting.act_precision is not None}
    return {
        "model": key[0],
        "data": key[1],
        "rows": points,
        "float": _percent(float_accuracy(table)),
        "graded": _graded(points),
        "published": [
            {
                "name": point.name,
                "c": point.compression,
                "acc": point.accuracy,
                "from": point.provenance,
                "act": point.act_precision,
                "before": point.before_finetune,
            }
            for point in published_points(*key, acts)
        ],
        "bits": _bits_per_layer(runs, places),
    }


def _row(row: Row, places: dict[int, int]) -> dict[str, Any]:
    """A point of the front. Percent, times, kB; ``sd`` is None for one seed."""
    accuracy, bar = row.test_accuracy, accuracy_bar(row)
    sizes = {
        counting: {
            "c": _mean(row.compression(counting)),
            **_range(row.compression(counting)),
            "kB": _mean(row.kilobytes(counting)),
        }
        for counting in COUNTINGS
    }
    setting = row.setting
    return {
        "label": row.label,
        "short": _short(row),
        "curve": row.curve,
        "method": setting.method,
        "knobless": setting.knob is None or not row.joined,
        "baseline": setting.baseline,
        "knob": setting.knob,
        "at": setting.knob_value,
        "lo": None if bar is None else rounded(100 * bar[0], 6),
        "hi": None if bar is None else rounded(100 * bar[1], 6),
        "gb": _mean(row.gbops),
        **{f"gb{end}": value for end, value in _range(row.gbops).items()},
        "acc": None if accuracy is None else rounded(100 * accuracy.mean, 6),
        "sd": None if accuracy is None or accuracy.std is None else rounded(100 * accuracy.std),
        "n": len(row.done),
        "asked": len(row.runs),
        "bits": _mean(row.mean_precision),
        "x": None if row.compression("paper") is None else sizes,
        "runs": [places[id(run)] for run in row.runs],
    }  # fmt: skip


def _short(row: Row) -> str:
    """The knob, to stand beside a point."""
    setting = row.setting
    if setting.knob == "quant.precision":
        return f"{setting.precision} b"
    if setting.baseline:
        return f"{row.mean_precision.mean:.3g} b" if row.mean_precision else ""
    if setting.alpha is not None:
        return f"α {setting.alpha:g}"
    return "" if setting.knob_value is None else f"{setting.knob_value:g}"


def _run(run: Run, label: str) -> dict[str, Any]:
    setting = run.setting
    percent = [None if a is None else rounded(100 * a, 6) for a in (run.test_accuracy, run.val_accuracy)]
    sizes = run.sizes
    return {
        "name": run.name,
        "label": label,
        "state": run.state,
        "method": setting.method if setting else None,
        "seed": setting.seed if setting else None,
        "act": setting.act_precision if setting else None,
        "test": percent[0],
        "valacc": percent[1],
        "val": run.val,
        "bits": rounded(run.mean_precision),
        "gb": rounded(run.gbops, 5),
        "x": {
            counting: {"c": rounded(size.get("compression"), 5), "kB": rounded((size.get("bits") or 0) / 8000, 5)}
            for counting, size in sizes.items()
        }
        if sizes
        else None,
        "warnings": run.warnings,
        "problems": run.problems,
        "curves": _curves(run),
        "layers": [[layer.name, layer.size, layer.precision] for layer in run.scheme.layers] if run.scheme else [],
        "damage": {name: rounded(loss, 5) for name, loss in run.damage.items()},
        "adjustments": _adjustments(run),
    }


def _curves(run: Run) -> dict[str, Any]:
    """Stages as [name, epochs] and one list a curve; a curve that is empty is left out."""
    stages: list[list[Any]] = []
    for stage in run.metrics.get("stage", []):
        if not stages or stages[-1][0] != stage:
            stages.append([stage, 0])
        stages[-1][1] += 1
    result: dict[str, Any] = {"stages": stages}
    for name in CURVES:
        values = [rounded(value) for value in run.metrics.get(name, [])]
        if any(value is not None for value in values):
            result[name] = values
    return result


def _adjustments(run: Run) -> dict[str, Any] | None:
    """Columns over the adjustments; bits and plane norms by layer."""
    adjustments = run.adjustments
    if not adjustments:
        return None
    sizes = [run.sizes_after(adjustment) for adjustment in adjustments]
    names = list(adjustments[-1].after)
    return {
        "epoch": [adjustment.epoch for adjustment in adjustments],
        "before": [None if a.acc_before is None else rounded(100 * a.acc_before) for a in adjustments],
        "after": [None if a.acc_after is None else rounded(100 * a.acc_after) for a in adjustments],
        "saved": [a.bits_before - a.bits_after for a in adjustments],
        "touched": [sum(a.before.get(name) != bits for name, bits in a.after.items()) for a in adjustments],
        "x": {
            counting: {
                "c": [rounded(size[counting]["compression"], 5) for size in sizes],
                "kB": [rounded((size[counting]["bits"] or 0) / 8000, 5) for size in sizes],
            }
            for counting in COUNTINGS
        }
        if all(sizes)
        else None,
        "layers": {
            name: {
                "from": [adjustment.before.get(name) for adjustment in adjustments],
                "to": [adjustment.after.get(name) for adjustment in adjustments],
                "norms": [[rounded(n, 3) for n in adjustment.plane_norms.get(name, [])] for adjustment in adjustments],
            }
            for name in names
        },
    }


def _bits_per_layer(runs: list[Run], places: dict[int, int]) -> dict[str, Any]:
    """Runs by size, smallest last; layers in the order of the network; None where a run has no such layer."""
    with_scheme = [run for run in runs if run.scheme]
    layers = list(dict.fromkeys(layer.name for run in with_scheme for layer in run.scheme.layers))  # type: ignore[union-attr]
    ordered = sorted(with_scheme, key=lambda run: -(run.mean_precision or 0))
    precisions = [run.scheme.precisions() if run.scheme else {} for run in ordered]
    return {
        "layers": layers,
        "runs": [places[id(run)] for run in ordered],
        "z": [[bits.get(layer) for layer in layers] for bits in precisions],
    }


def _mean(spread: Spread | None) -> float | None:
    return None if spread is None else rounded(spread.mean, 5)


def _range(spread: Spread | None) -> dict[str, float | None]:
    """The smallest and the largest of several seeds."""
    if spread is None or spread.n < 2:
        return {"lo": None, "hi": None}
    return {"lo": rounded(spread.low, 5), "hi": rounded(spread.high, 5)}


def _percent(spread: Spread | None) -> float | None:
    return None if spread is None else rounded(100 * spread.mean, 6)


def _graded(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The knob that colours the points where they are many: its key, its name, from and to."""
    keys = [point["knob"] for point in points if not point["baseline"] and (point["at"] or 0) > 0]
    key = max(keys, key=keys.count, default=None)
    values = [
        point["at"] for point in points if point["knob"] == key and not point["baseline"] and (point["at"] or 0) > 0
    ]
    if key is None or len(set(values)) < MANY:
        return None
    return {"key": key, "name": key.rpartition(".")[2], "from": min(values), "to": max(values)}
