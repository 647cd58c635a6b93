"""A network's slices on crossbars as tables: counted from its codes, and tested with converters that saturate."""

import csv
import io
import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bsq_lightning.cli.run.opening import OpenedRun
from bsq_lightning.files import write_whole
from bsq_lightning.hardware import Crossbars, code_bits, input_grids, layer_uses, on_crossbars
from bsq_lightning.module import measuring
from bsq_lightning.ops.bit_slices import adc_bits, energy_factor, slice_count, speed_factor
from bsq_lightning.quantized_tensor import QuantizedState
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import FLOAT_BITS

ALL = "all layers"
JSON, CSV = "slices.json", "slices.csv"
DERIVED = (
    "ADC bits: ceil(log2(1 + largest column sum)); energy: P(8) / P(n) with P(n) = 2^n / (n + 1); speed: 8 / n. "
    "Derived, not measured on hardware."
)


@dataclass(frozen=True)
class SliceRow:
    """One slice of one layer, or of all.

    Args:
        layer: its name.
        slice: 0 for the least significant.
        nonzero: share of the weights whose slice is not zero.
        nonzero_of_unpruned: of the weights that are not zero.
        largest: largest column sum; of all layers the largest.
        covering: column sum that 99.9 % do not exceed; of all layers the largest.
        adc_bits, covering_adc_bits: with which a converter reads them.
        energy, speed: of a conversion, against one of 8 bits; None where the slice is empty and needs none.
    """

    layer: str
    slice: int
    nonzero: float
    nonzero_of_unpruned: float
    largest: int
    covering: int
    adc_bits: int
    covering_adc_bits: int
    energy: float | None
    speed: float | None


@dataclass(frozen=True)
class SaturatingAccuracy:
    """Test accuracy with converters of given widths.

    Args:
        converters: which, in words.
        adc_bits: of each slice, least significant first; None for the network as it is, without crossbars.
        accuracy: share of the images.
        images: their number.
    """

    converters: str
    adc_bits: list[int] | None
    accuracy: float
    images: int


def slice_rows(state: QuantizedState, machine: Crossbars) -> list[SliceRow]:
    """Every layer's slices, and those of all layers together, most significant first as they are usually printed."""
    rows, weights = [], {}
    for name, uses in layer_uses(state, machine).items():
        weights[name] = state.tensors[name].codes.numel()
        rows += [_row(name, u.slice, u.nonzero, u.nonzero_of_unpruned, u.largest, u.covering) for u in reversed(uses)]
    alive = {name: int((state.tensors[name].codes != 0).sum()) for name in weights}
    for k in reversed(range(slice_count(code_bits(state), machine.slice_bits))):
        of = [row for row in rows if row.slice == k]
        filled = sum(weights[row.layer] * row.nonzero for row in of)
        unpruned = sum(alive.values())
        rows.append(_row(
            ALL, k, filled / sum(weights.values()), filled / unpruned if unpruned else 0.0,
            max(row.largest for row in of), max(row.covering for row in of),
        ))  # fmt: skip
    return rows


def _row(layer: str, k: int, nonzero: float, unpruned: float, largest: int, covering: int) -> SliceRow:
    bits = adc_bits(largest)
    factors = (energy_factor(bits), speed_factor(bits)) if bits else (None, None)
    return SliceRow(layer, k, nonzero, unpruned, largest, covering, bits, adc_bits(covering), *factors)


def saturating_accuracies(
    opened: OpenedRun, state: QuantizedState, machine: Crossbars, widths: Sequence[int], images: int | None
) -> list[SaturatingAccuracy]:
    """Tests the newest network of a run on crossbars whose converters cut sums at ``2^n - 1``.

    Args:
        opened: the run.
        state: its ``quantized.safetensors``.
        machine: the crossbars.
        widths: numbers of bits that all converters have in turn.
        images: test images; None for all.

    Raises:
        ValueError: the checkpoint is of other weights than the file (the run was stopped within a stage).
    """
    network = opened.module.network
    for name, parameter, _ in network.quantizers():
        if name not in state.tensors or not torch.equal(state.tensors[name].dequantize().to(parameter), parameter):
            raise ValueError(
                f"{name}: the newest checkpoint of {opened.folder.path} has other weights than "
                f"{opened.folder.quantized_file.name}, which is written at the ends of stages: let the run go on "
                "(resume=FOLDER), or count without testing (images=0)"
            )
    bits = code_bits(state)
    slices_ = slice_count(bits, machine.slice_bits)
    uses = layer_uses(state, machine)
    tried = {
        "none saturates": [max(each[k].adc_bits for each in uses.values()) for k in range(slices_)],
        "99.9 % of columns fit": [max(each[k].covering_adc_bits for each in uses.values()) for k in range(slices_)],
        "1 bit for the top slice, 3 for the others": [3] * (slices_ - 1) + [1],
        **{f"{n} bits": [n] * slices_ for n in sorted(widths, reverse=True)},
    }
    names = [name for name in (*uses, *state.owners) if name in uses or state.owners.get(name) in uses]
    with measuring(opened.module):
        images_ = [batch for batch, _ in islice(opened.datamodule.calibration_dataloader(), _RANGE_BATCHES)]
        grids = input_grids(network.net, {name: state.input_bits.get(name, FLOAT_BITS) for name in names}, images_)
        accuracy, count = _accuracy(opened, images)
        done = [SaturatingAccuracy("no crossbars", None, accuracy, count)]
        for words, adc in tried.items():
            with on_crossbars(network.net, state, grids, adc, machine):
                done.append(SaturatingAccuracy(words, adc, _accuracy(opened, images)[0], count))
    return done


_RANGE_BATCHES = 10


def _accuracy(opened: OpenedRun, images: int | None) -> tuple[float, int]:
    right = seen = 0
    for batch, labels in _first(opened.datamodule.test_dataloader(), images):
        right += int((opened.module(batch).argmax(1) == labels.to(batch.device)).sum())
        seen += len(labels)
    return right / seen, seen


def _first(batches: Any, images: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    left = math.inf if images is None else images
    for batch, labels in batches:
        if left <= 0:
            return
        yield (batch, labels) if left >= len(labels) else (batch[: int(left)], labels[: int(left)])
        left -= len(labels)


def write_slices(
    folder: RunFolder, machine: Crossbars, rows: Sequence[SliceRow], accuracies: Sequence[SaturatingAccuracy]
) -> None:
    """Leaves ``slices.json``, which holds all, and ``slices.csv``, which holds the slices."""
    content = {
        "crossbars": asdict(machine),
        "constants": DERIVED,
        "slices": [asdict(row) for row in rows],
        "accuracies": [asdict(each) for each in accuracies],
    }
    write_whole(folder.path / JSON, json.dumps(content, indent=1))
    text = io.StringIO()
    writer = csv.DictWriter(text, list(SliceRow.__dataclass_fields__), lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(row) for row in rows)
    write_whole(folder.path / CSV, text.getvalue())


def print_slices(folder: RunFolder, rows: Sequence[SliceRow], accuracies: Sequence[SaturatingAccuracy]) -> None:
    """Each layer in a line, slices from the most significant; then all together, and the accuracies."""
    console = Console(width=None if Console().is_terminal else 140)
    places = sorted({row.slice for row in rows}, reverse=True)
    layers = Table(title="slices, most significant first", title_justify="left")
    for column in ("layer", "not zero, %", "largest column sum", "99.9 % of columns", "ADC bits", "for 99.9 %"):
        layers.add_column(column, justify="left" if column == "layer" else "right")
    for name in dict.fromkeys(row.layer for row in rows):
        of = {row.slice: row for row in rows if row.layer == name}
        each = [of[k] for k in places]
        layers.add_row(
            name, *(" ".join(f"{value:>4}" for value in column) for column in (
                [f"{100 * r.nonzero:.1f}" for r in each], [r.largest for r in each], [r.covering for r in each],
                [r.adc_bits for r in each], [r.covering_adc_bits for r in each],
            )),
            end_section=name == rows[-len(places) - 1].layer if len(rows) > len(places) else False,
        )  # fmt: skip
    console.print(layers)
    costs = [f"slice {r.slice}: {r.energy:.2f} x less energy, {r.speed:.2f} x as fast" if r.energy and r.speed else
             f"slice {r.slice}: empty, no converter" for r in rows if r.layer == ALL]  # fmt: skip
    mean = sum(row.nonzero for row in rows if row.layer == ALL) / len(places)
    console.print(f"{100 * mean:.2f} % of all slices are not zero. Against converters of 8 bits: {'; '.join(costs)}")
    console.print(DERIVED)
    if accuracies:
        table = Table(title=f"test accuracy, {accuracies[0].images} images", title_justify="left")
        for column in ("converters", "ADC bits, most significant slice first", "accuracy"):
            table.add_column(column, justify="right" if column == "accuracy" else "left")
        for each in accuracies:
            widths = "" if each.adc_bits is None else " ".join(map(str, reversed(each.adc_bits)))
            table.add_row(each.converters, widths, f"{100 * each.accuracy:.2f} %")
        console.print(table)
    console.print(f"written: {folder.path / JSON}, {CSV}")
