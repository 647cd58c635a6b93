"""Cycles, energy and traffic of a quantized network on a bit-serial array: an analytical model.

Derived, not the SWIS paper's simulator: its figures are comparisons of methods on one array, never "the paper's".
Every constant is a named parameter. The default energies are placeholders of about the size of a 45 nm process
(recalled from Horowitz, ISSCC 2014, unverified): put in those of a real technology before quoting a joule.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch  # noqa: F401 (the examples)

from bsq_lightning.quantized_tensor import Filters, Grid, Planes, Points, QuantizedState, QuantizedTensor, Shifts

ENERGY_IS_PLACEHOLDER = "energies are placeholders (45 nm, recalled, unverified)"


@dataclass(frozen=True)
class Array:
    """An output-stationary array: rows take output positions, columns take filters, in lock step.

    A processing element takes ``group`` activations and mask bits, adds them up, shifts the sum once and accumulates.

    Args:
        rows: R, output positions at a time.
        columns: A, filters at a time: a tile, whose filters all take as many shifts as the one that takes most.
        group: M, weights that share a shift.
        shifts_per_cycle: u, 1 or 2.

    Raises:
        ValueError: a number below 1.
    """

    rows: int = 8
    columns: int = 8
    group: int = 4
    shifts_per_cycle: int = 1

    def __post_init__(self) -> None:
        if min(self.rows, self.columns, self.group, self.shifts_per_cycle) < 1:
            raise ValueError(f"an array has at least one of everything, not {self}")


@dataclass(frozen=True)
class Energy:
    """Picojoules; placeholders, see the module.

    Args:
        dram_bit: of one bit of weights from DRAM.
        sram_bit: of one bit of activations from the buffer.
        pe_cycle: of one cycle of one processing element.
        accumulation: of one addition to an output.
        act_bits: bits of an activation as it is read.
    """

    dram_bit: float = 20.0
    sram_bit: float = 0.3
    pe_cycle: float = 0.2
    accumulation: float = 0.1
    act_bits: int = 8


@dataclass(frozen=True)
class Cost:
    """What a layer or a network takes for one image.

    Args:
        cycles: of the array.
        dram_bits: bits of weights, masks, shifts and steps read from DRAM, once.
        sram_bits: bits of activations read from the buffer.
        picojoules: by ``Energy``.
    """

    cycles: int
    dram_bits: int
    sram_bits: int
    picojoules: float

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(
            self.cycles + other.cycles,
            self.dram_bits + other.dram_bits,
            self.sram_bits + other.sram_bits,
            self.picojoules + other.picojoules,
        )


def layer_cycles(shifts: Sequence[int], depth: int, positions: int, array: Array) -> int:
    """``ceil(P / R) sum_tiles ceil(d / M) ceil(n_t / u)``, and ``R + A - 2`` a tile to fill the array.

    Filters with equal numbers share tiles, as the schedule puts them; a tile takes the largest number of its filters,
    and one whose filters are all empty takes no cycle.

    Args:
        shifts: n of each filter.
        depth: weights d of a filter.
        positions: outputs P of a filter.
        array: the array.

    Example:
        >>> layer_cycles([2] * 8 + [4] * 8, depth=16, positions=64, array=Array(rows=8, columns=8, group=4))
        220
    """
    ordered = sorted(shifts, reverse=True)
    tiles = [ordered[i] for i in range(0, len(ordered), array.columns) if ordered[i]]
    busy = sum(math.ceil(n / array.shifts_per_cycle) for n in tiles) * math.ceil(depth / array.group)
    return math.ceil(positions / array.rows) * busy + len(tiles) * (array.rows + array.columns - 2)


def shifts_of(tensor: QuantizedTensor) -> list[int]:
    """Shifts of every filter the array runs: bits of magnitude, or fewer where bit positions are shared or dropped.

    A channel of n points is n filters.

    Raises:
        ValueError: a codebook, whose codes are no sums of powers of two.
    """
    filters, extra = len(tensor.codes), tensor.extra
    if isinstance(extra, Grid):
        raise ValueError("codes of a codebook are no sums of shifted bits: this array cannot run them")
    if isinstance(extra, Shifts):
        return [int(n) for n in extra.number]
    if isinstance(extra, Filters):
        return extra.bits.tolist()
    if isinstance(extra, Planes):
        return [len(extra.alive)] * filters
    bits = max(0, math.ceil(tensor.precision) - (tensor.sign == "inside"))
    points = int((extra.step != 0).sum()) if isinstance(extra, Points) else 0
    return [bits] * (filters + points)


def layer_cost(shifts: Sequence[int], depth: int, positions: int, dram_bits: int, array: Array, energy: Energy) -> Cost:
    """Cost of one layer; see ``layer_cycles`` for the arguments.

    A group's activations are read once for each pass of a tile over it; each pass adds once to every output.
    """
    cycles = layer_cycles(shifts, depth, positions, array)
    tiles = math.ceil(sum(n > 0 for n in shifts) / array.columns)
    groups = math.ceil(depth / array.group)
    sram = tiles * groups * positions * array.group * energy.act_bits
    passes = groups * positions * sum(math.ceil(n / array.shifts_per_cycle) for n in shifts)
    joules = energy.dram_bit * dram_bits + energy.sram_bit * sram
    joules += energy.pe_cycle * cycles * array.rows * array.columns + energy.accumulation * passes
    return Cost(cycles, dram_bits, sram, joules)


def network_cost(state: QuantizedState, array: Array | None = None, energy: Energy | None = None) -> dict[str, Cost]:
    """Cost of every quantized layer by name; layers that stay float are not run on the array.

    Args:
        state: tensors and their MACs. Convolutions only count right where each filter sees all of its input at once;
            a depthwise layer is taken to keep its columns busy, which favours it.
        array: the array; the default one otherwise.
        energy: constants; the placeholders otherwise.

    Raises:
        ValueError: a layer without MACs, or with codes that the array cannot run.
    """
    array, energy = array or Array(), energy or Energy()
    for name, tensor in _weights(state).items():
        if isinstance(tensor.extra, Shifts) and tensor.extra.group % array.group:
            raise ValueError(
                f"layer {name} shares shifts in groups of {tensor.extra.group}, which an array that shifts sums of "
                f"{array.group} cannot use: take a divisor as its group"
            )
    return {
        name: layer_cost(shifts_of(tensor), *_shape(state, name, tensor), _stored(tensor), array, energy)
        for name, tensor in _weights(state).items()
    }


def baselines(
    state: QuantizedState, array: Array | None = None, energy: Energy | None = None, bits: int = 8
) -> dict[str, Cost]:
    """The same network on the same array, computed otherwise.

    ``bit_serial``: all ``bits``. ``truncation``: every layer at the whole number of bits next above the mean shifts
    of this network. ``stripes``: every layer at the bits that its own largest code needs, found by layer as Stripes
    does. All of them store a sign and their bits.

    Args:
        state: as for ``network_cost``.
        array: as for ``network_cost``.
        energy: as for ``network_cost``.
        bits: B of the bit-serial machine.
    """
    array, energy = array or Array(), energy or Energy()
    kept = math.ceil(mean_shifts(state) - 1e-9)
    totals: dict[str, Cost] = {}
    for kind in ("bit_serial", "truncation", "stripes"):
        total = Cost(0, 0, 0, 0.0)
        for name, tensor in _weights(state).items():
            largest = int(tensor.codes.abs().max())
            n = {"bit_serial": bits, "truncation": kept, "stripes": largest.bit_length()}[kind]
            # Stripes runs this network's own codes, all points of them; the others run one of plain codes.
            filters = len(shifts_of(tensor)) if kind == "stripes" else len(tensor.codes)
            depth, positions = _shape(state, name, tensor)
            dram = filters * depth * (n + 1) if n else 0
            total += layer_cost([n] * filters, depth, positions, dram, array, energy)
        totals[kind] = total
    return totals


def compare(
    state: QuantizedState, array: Array | None = None, energy: Energy | None = None, bits: int = 8
) -> dict[str, dict[str, float]]:
    """The network and its baselines, with what each takes over what this network takes.

    Example:
        >>> codes = torch.tensor([[3, -1, 0, 2]] * 8, dtype=torch.int32)
        >>> state = QuantizedState({"fc": QuantizedTensor(codes, torch.tensor(1.0), 2)}, macs={"fc": 32})
        >>> compare(state, Array(rows=1, columns=8))["bit_serial"]["cycles_ratio"]
        1.6666666666666667
    """
    own = sum(network_cost(state, array, energy).values(), Cost(0, 0, 0, 0.0))
    rows = {"this": own} | baselines(state, array, energy, bits)
    return {
        name: {
            "cycles": cost.cycles,
            "cycles_ratio": cost.cycles / own.cycles if own.cycles else math.inf,
            "picojoules": cost.picojoules,
            "energy_ratio": cost.picojoules / own.picojoules if own.picojoules else math.inf,
            "dram_bits": cost.dram_bits,
            "dram_ratio": cost.dram_bits / own.dram_bits if own.dram_bits else math.inf,
        }
        for name, cost in rows.items()
    }


def mean_shifts(state: QuantizedState) -> float:
    """Shifts of a weight, on average over all weights of the network."""
    total = count = 0
    for tensor in _weights(state).values():
        depth = tensor.codes[0].numel()
        total += sum(shifts_of(tensor)) * depth
        count += tensor.codes.numel()
    return total / count if count else 0.0


def _weights(state: QuantizedState) -> Mapping[str, QuantizedTensor]:
    """Tensors with filters; biases are added, not multiplied."""
    return {name: tensor for name, tensor in state.tensors.items() if tensor.codes.dim() > 1}


def _shape(state: QuantizedState, name: str, tensor: QuantizedTensor) -> tuple[int, int]:
    """Depth of a filter and output positions."""
    macs = state.macs.get(name, 0)
    if not macs:
        raise ValueError(f"layer {name} has no MACs in this file: count_macs(net, image_size) finds them")
    return tensor.codes[0].numel(), max(1, round(macs / tensor.codes.numel()))


def _stored(tensor: QuantizedTensor) -> int:
    return tensor.storage_bits() + tensor.side_bits()
