"""The report's tables as CSV: every run, every setting, every adjustment, every layer."""

import csv
import io
from collections.abc import Iterable
from typing import Any

from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.front import row_above_line
from bsq_lightning.reports.runs import COUNTINGS
from bsq_lightning.reports.table import Spread


def csv_files(collection: Collection) -> dict[str, str]:
    """Text by file name. Accuracies are fractions, sizes times and bits; an empty cell is unknown."""
    return {
        "runs.csv": _text(_runs(collection)),
        "settings.csv": _text(_settings(collection)),
        "adjustments.csv": _text(_adjustments(collection)),
        "layers.csv": _text(_layers(collection)),
    }


def _runs(collection: Collection) -> Iterable[dict[str, Any]]:
    labels = {id(run): row.label for table in collection.tables.values() for row in table for run in row.runs}
    for run in collection.runs:
        setting = run.setting
        yield {
            "run": run.name,
            "state": run.state,
            "model": setting and setting.model,
            "data": setting and setting.data,
            "setting": labels.get(id(run)),
            "method": setting and setting.method,
            "knob": setting and setting.knob,
            "knob_value": setting and setting.knob_value,
            "act_precision": setting and setting.act_precision,
            "seed": setting and setting.seed,
            "test_accuracy": run.test_accuracy,
            "val_accuracy": run.val_accuracy,
            "validation_images": run.val,
            "mean_precision": run.mean_precision,
            **_sizes(run.sizes),
            "gbops": run.gbops,
            "epochs": len(run.metrics.get("stage", [])),
            "seconds": run.seconds,
            "error": f"{run.error.get('type')}: {run.error.get('message')}" if run.error else None,
            "problems": "; ".join(run.problems),
            "warnings": "; ".join(run.warnings),
            "folder": str(run.path),
        }
    for missing in collection.missing:
        yield {"run": missing.name, "state": "missing", "problems": " ".join(missing.overrides)}
    for unread in collection.unread:
        yield {"run": unread.path.name, "state": "unreadable", "problems": unread.reason, "folder": str(unread.path)}


def _settings(collection: Collection) -> Iterable[dict[str, Any]]:
    for (model, data), table in collection.tables.items():
        for row in table:
            result: dict[str, Any] = {"model": model, "data": data, "setting": row.label}
            result |= {"knob": row.setting.knob, "knob_value": row.setting.knob_value}
            result |= {"runs": len(row.runs), "done": len(row.done)}
            for name, spread in (("test_accuracy", row.test_accuracy), ("val_accuracy", row.val_accuracy)):
                result |= _spread(name, spread)
            result |= _spread("mean_precision", row.mean_precision)
            for counting in COUNTINGS:
                result |= _spread(f"compression_{counting}", row.compression(counting))
            result |= _spread("gbops", row.gbops)
            above = row_above_line(table, row)
            yield result | {"above_line": above and above.difference, "line": above and above.line}


def _adjustments(collection: Collection) -> Iterable[dict[str, Any]]:
    for run, i, adjustment in ((each, i, a) for each in collection.runs for i, a in enumerate(each.adjustments)):
        yield {
            "run": run.name,
            "adjustment": i + 1,
            "bits_epoch": adjustment.epoch + 1,
            "val_accuracy_before": adjustment.acc_before,
            "val_accuracy_after": adjustment.acc_after,
            "bits_before": adjustment.bits_before,
            "bits_after": adjustment.bits_after,
            **_sizes(run.sizes_after(adjustment)),
            "layers_changed": sum(adjustment.before.get(name) != bits for name, bits in adjustment.after.items()),
            "largest_relative_change": adjustment.largest_relative_change,
        }


def _layers(collection: Collection) -> Iterable[dict[str, Any]]:
    for run in collection.runs:
        for layer in run.scheme.layers if run.scheme else ():
            yield {
                "run": run.name,
                "layer": layer.name,
                "weights": layer.size,
                "bits": layer.precision,
                "step": layer.step,
                "loss_of_rounding": run.damage.get(layer.name),
            }


def _sizes(sizes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {
        f"{name}_{counting}": sizes.get(counting, {}).get(name)
        for counting in COUNTINGS
        for name in ("bits", "compression")
    }


def _spread(name: str, spread: Spread | None) -> dict[str, float | None]:
    return {f"{name}_mean": spread and spread.mean, f"{name}_std": spread and spread.std}


def _text(lines: Iterable[dict[str, Any]]) -> str:
    # A spreadsheet would run a text like =1+1, and names come from folders.
    table = [
        {k: f"'{v}" if isinstance(v, str) and v[:1] in tuple("=+-@") else v for k, v in line.items()} for line in lines
    ]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(dict.fromkeys(key for line in table for key in line)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return out.getvalue()
