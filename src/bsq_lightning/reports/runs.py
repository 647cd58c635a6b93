"""One run folder as plain data, however far the run came and whatever is broken in its files."""

import csv
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bsq_lightning.reports.settings import Setting, is_number, read_setting
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import LayerScheme, Scheme, stored_bits

COUNTINGS = ("paper", "signed", "model")
MAX_BITS = 16
MAX_CARD = 2**16  # characters of a card that are shown
CURVES = ("train/loss", "val/loss", "train/penalty", "train/acc", "val/acc", "mean_precision")


@dataclass(frozen=True)
class Adjustment:
    """One precision adjustment; ``epoch`` counts from 0 within the bits stage, accuracies are of validation images."""

    epoch: int
    acc_before: float | None
    acc_after: float | None
    bits_before: int
    bits_after: int
    largest_relative_change: float | None
    before: dict[str, int | float]
    after: dict[str, int | float]
    stored: dict[str, tuple[int, int, int]]
    plane_norms: dict[str, list[float]]


@dataclass
class Run:
    """What one run folder tells. ``problems`` are sentences about what could not be read, ``warnings`` about the run.

    ``damage`` is what the rounding of each layer cost the training loss in the newest epoch, ``card`` the text of its
    quantization card.
    ``metrics`` holds one list for each of ``stage`` and ``CURVES``, one entry an epoch, None where nothing was written.
    """

    path: Path
    name: str
    state: str
    setting: Setting | None = None
    metrics: dict[str, list[Any]] = field(default_factory=dict)
    adjustments: list[Adjustment] = field(default_factory=list)
    scheme: Scheme | None = None
    damage: dict[str, float] = field(default_factory=dict)
    card: str = ""
    summary: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    problems: list[str] = field(default_factory=list)
    _sizes_of_bits: dict[tuple[Any, ...], dict[str, dict[str, Any]]] = field(default_factory=dict, repr=False)

    @property
    def test_accuracy(self) -> float | None:
        """Of a finished run, from its summary."""
        return _at(self.summary, "accuracy", "final", "test/acc")

    @property
    def val_accuracy(self) -> float | None:
        """Of the summary, or the newest of ``metrics.csv``."""
        written = _at(self.summary, "accuracy", "final", "val/acc")
        newest = [value for value in self.metrics.get("val/acc", []) if value is not None]
        return written if written is not None else newest[-1] if newest else None

    @property
    def val(self) -> str:
        """What validation images are: ``unseen``, ``seen_in_float`` or ``test set``."""
        if self.summary.get("val"):
            return str(self.summary["val"])
        if self.setting is None:
            return "unknown"
        flat = self.setting.flat
        if flat.get("data.val_split") in ("0", "0.0"):
            return "test set"
        return "unseen" if flat.get("model.weights", "null") == "null" else "seen_in_float"

    @property
    def sizes(self) -> dict[str, dict[str, Any]]:
        """Bits and compression in the three countings, from the summary or the newest scheme; empty if unknown."""
        written = self.summary.get("sizes")
        if isinstance(written, dict) and all(_is_size(written.get(counting)) for counting in COUNTINGS):
            return written
        return self.scheme.sizes() if self.scheme else {}

    @property
    def mean_precision(self) -> float | None:
        """Mean bits of magnitude over the quantized weights."""
        written = self.summary.get("mean_precision")
        if is_number(written):
            return float(written)
        return self.scheme.mean_precision if self.scheme else None

    @property
    def float_accuracy(self) -> float | None:
        """Test accuracy of the float network that the run began with, as its summary says it."""
        return _at(self.summary, "accuracy", "float", "test/acc")

    @property
    def test_images(self) -> int | None:
        """How many images a finished run was tested on."""
        images = _at(self.summary, "data", "test")
        return int(images) if images and images >= 1 and math.isfinite(images) else None

    @property
    def gbops(self) -> float | None:
        """Bit operations of one image in 1e9."""
        written = _at(self.summary, "gbops")
        known = written if written is not None else self.scheme.gbops if self.scheme else None
        return known if known and math.isfinite(known) else None

    @property
    def seconds(self) -> float | None:
        """Seconds of all epochs of a finished run."""
        written = self.summary.get("seconds")
        if not isinstance(written, dict) or not all(map(is_number, written.values())):
            return None
        return sum(written.values()) or None

    @property
    def warnings(self) -> list[str]:
        """What a reader of this run should look at."""
        result = []
        empty = [layer.name for layer in self.scheme.layers if not layer.precision] if self.scheme else []
        if empty:
            result.append(f"{_few(empty)} at 0 bits: such a layer outputs zero and never grows back")
        still, longest, end = 0, 0, 0
        for i, adjustment in enumerate(self.adjustments):
            still = still + 1 if adjustment.before == adjustment.after else 0
            if still > longest:
                longest, end = still, i
        if longest >= 2 and self.setting and self.setting.alpha:
            first, last = self.adjustments[end - longest + 1].epoch + 1, self.adjustments[end].epoch + 1
            result.append(f"no layer moved at {longest} adjustments in a row (bits epochs {first} to {last})")
        moved = [a.epoch + 1 for a in self.adjustments if (a.largest_relative_change or 0) > 1e-6]
        if moved:
            result.append(f"an adjustment changed weights by more than 1e-6 (bits epoch {moved[0]})")
        return result

    def sizes_after(self, adjustment: Adjustment) -> dict[str, dict[str, Any]]:
        """The three sizes after an adjustment; empty where the layers' sizes are unknown."""
        if self.scheme is None:
            return {}
        layers = tuple(_layer_after(layer, adjustment) for layer in self.scheme.layers)
        key = tuple((layer.precision, layer.stored) for layer in layers)
        if key not in self._sizes_of_bits:
            scheme = Scheme(layers, self.scheme.float_parameters, self.scheme.act_precision)
            self._sizes_of_bits[key] = scheme.sizes()
        return self._sizes_of_bits[key]


def _layer_after(layer: LayerScheme, adjustment: Adjustment) -> LayerScheme:
    precision = adjustment.after.get(layer.name, layer.precision)
    if layer.name in adjustment.stored:
        return replace(layer, precision=precision, stored=adjustment.stored[layer.name])
    return layer if precision == layer.precision else layer.at(precision)


def read_run(path: Path, name: str = "") -> Run:
    """Reads a run folder. What is missing or broken becomes a sentence in ``problems``; the rest is kept.

    Raises:
        ValueError: it is not a run folder: no config of a run, and no record of a failure either.
    """
    folder = RunFolder(path)
    run = Run(path, name or path.name, _state(folder))
    try:
        run.error = folder.error()
    except (ValueError, OSError) as error:
        run.problems.append(_sentence(error, path))
    try:
        run.setting = read_setting(folder.config)
    except (ValueError, OSError) as error:
        if run.error is None:
            raise ValueError(str(error)) from error
        run.problems.append(str(error))
    _read_summary(run)
    _read_metrics(run)
    _read_scheme(run)
    _read_adjustments(run)
    _read_damage(run)
    _read_card(run)
    return run


def _state(folder: RunFolder) -> str:
    try:
        return folder.state
    except OSError:  # a lock that belongs to somebody else
        return "failed" if (folder.path / "error.json").exists() else "unfinished"


def _read_summary(run: Run) -> None:
    if not (run.path / "summary.json").exists():
        return
    try:
        run.summary = RunFolder(run.path).summary()
    except (ValueError, OSError) as error:
        run.problems.append(_sentence(error, run.path))
    if run.test_accuracy is None:
        run.state = "unfinished"
        run.problems.append("summary.json has no final test accuracy")
    if run.summary.get("sizes") and run.sizes is not run.summary["sizes"]:
        run.problems.append("summary.json: its sizes are not numbers of bits, so those of scheme.json are taken")


def _read_metrics(run: Run) -> None:
    run.metrics = {name: [] for name in ("stage", *CURVES)}
    path = run.path / "metrics.csv"
    if not path.exists():
        epochs = run.summary.get("epochs")
        untrained = isinstance(epochs, dict) and not any(epochs.values())  # a method without training has none
        if (
            run.state != "failed"
            and not untrained
            and not (run.summary and run.setting and run.setting.method == "float")
        ):
            run.problems.append("metrics.csv is missing: no epoch was recorded")
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    rows = list(csv.reader(lines))
    header = rows[0] if rows else []
    if "stage" not in header:
        run.problems.append("metrics.csv has no header with a column `stage`")
        return
    places = {name: header.index(name) for name in run.metrics if name in header}
    body = rows[1:] if lines[-1].endswith("\n") else rows[1:-1]
    whole = [row for row in body if len(row) == len(header) and _are_numbers(row, places)]
    for name in run.metrics:
        if name in places:
            column = [row[places[name]] for row in whole]
            run.metrics[name] = column if name == "stage" else [float(value) if value else None for value in column]
        else:
            run.metrics[name] = [None] * len(whole)
    broken = len(rows) - 1 - len(whole)
    if broken:
        run.problems.append(f"metrics.csv: {broken} broken {'line' if broken == 1 else 'lines'} left out")


def _are_numbers(row: list[str], places: dict[str, int]) -> bool:
    try:
        for name, place in places.items():
            if name != "stage" and row[place]:
                float(row[place])
    except ValueError:
        return False
    return True


def _read_scheme(run: Run) -> None:
    if run.setting is not None and run.setting.method == "float":
        return
    try:
        run.scheme = Scheme.load(run.path / "scheme.json")
    except FileNotFoundError:
        if any(stage != "float" for stage in run.metrics["stage"]) or run.state == "done":
            run.problems.append("scheme.json is missing: no bits per layer")
    except (ValueError, OSError) as error:
        run.problems.append(_sentence(error, run.path))


def _read_adjustments(run: Run) -> None:
    path = run.path / "adjustments.jsonl"
    if not path.exists():
        return
    broken = 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            run.adjustments.append(_adjustment(json.loads(line)))
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            broken += 1
    if broken:
        run.problems.append(f"adjustments.jsonl: {broken} broken {'line' if broken == 1 else 'lines'} left out")


def _read_damage(run: Run) -> None:
    if run.scheme is None:
        return
    try:
        stages = RunFolder(run.path).damage()
        layers = list(stages.values())[-1]["layers"] if stages else {}
        known = [layer.name for layer in run.scheme.layers if layer.name in layers]
        run.damage = {name: float(layers[name]) for name in known if math.isfinite(layers[name])}
    except (ValueError, OSError, TypeError, KeyError, AttributeError, RecursionError):
        run.problems.append("damage.json cannot be read: what rounding costs is left out")


def _read_card(run: Run) -> None:
    path = run.path / "card.md"
    if path.is_file():
        run.card = path.read_text(encoding="utf-8", errors="replace")[:MAX_CARD]


def _adjustment(row: dict[str, Any]) -> Adjustment:
    layers = row["layers"]
    before, after, change = (row.get(key) for key in ("acc_before", "acc_after", "largest_relative_change"))
    return Adjustment(
        epoch=int(row["epoch"]),
        acc_before=None if before is None else float(before),
        acc_after=None if after is None else float(after),
        bits_before=int(row["bits_before"]),
        bits_after=int(row["bits_after"]),
        largest_relative_change=None if change is None else float(change),
        before={name: _bits(layer["from"]) for name, layer in layers.items()},
        after={name: _bits(layer["to"]) for name, layer in layers.items()},
        stored={name: stored_bits(layer["stored"]) for name, layer in layers.items() if "stored" in layer},
        plane_norms={name: [float(norm) for norm in layer.get("plane_norms", [])] for name, layer in layers.items()},
    )


def _bits(value: Any) -> int | float:
    """Whole, or the mean of a layer that mixes them."""
    number = float(value)
    if not 0 <= number <= MAX_BITS:
        raise ValueError(f"{value} bits")
    return int(number) if number == int(number) else number


def _at(content: Any, *keys: str) -> float | None:
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return float(content) if is_number(content) else None


def _is_size(size: Any) -> bool:
    """Whether this is one of the three sizes of a summary; no compression means that no bit is left."""
    if not isinstance(size, dict) or not is_number(size.get("bits")):
        return False
    ratio = size.get("compression")
    return size["bits"] >= 0 and (ratio is None or is_number(ratio) and ratio > 0)


def _few(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= 4 else f"{', '.join(names[:3])} and {len(names) - 3} more layers"


def _sentence(error: Exception, folder: Path) -> str:
    return str(error).replace(f"{folder}/", "")
