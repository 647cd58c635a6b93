"""What is printed of a network on an array."""

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from bsq_lightning.hardware import ENERGY_IS_PLACEHOLDER, Cost, shifts_of
from bsq_lightning.quantized_tensor import QuantizedState, QuantizedTensor, Shifts

#: How the same network is computed otherwise on the same array.
NAMES = {
    "this": "this network",
    "bit_serial": "bit-serial, all bits",
    "truncation": "layers cut to its mean shifts",
    "stripes": "bits of each layer's largest code",
}


def print_cost(state: QuantizedState, layers: Mapping[str, Cost], rows: Mapping[str, Mapping[str, float]]) -> None:
    """Layers and what they take, then the comparison.

    Args:
        state: the quantized network.
        layers: cost of each layer.
        rows: what ``hardware.compare`` returned.
    """
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title="one image on the array", title_justify="left")
    for column in ("layer", "weights", "bits of a code", "shifts", "stored bits", "cycles", "DRAM kB", "SRAM kB", "uJ"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for name, cost in layers.items():
        tensor = state.tensors[name]
        table.add_row(
            name, f"{tensor.codes.numel():,}", f"{tensor.precision:g}", f"{_shifts(tensor):.2f}",
            f"{tensor.storage_bits() / max(1, tensor.codes.numel()):.2f}", f"{cost.cycles:,}",
            f"{cost.dram_bits / 8000:.2f}", f"{cost.sram_bits / 8000:.1f}", f"{cost.picojoules / 1e6:.3f}",
        )  # fmt: skip
    console.print(table)
    table = Table(title="the same network on the same array", title_justify="left")
    for column in ("computed", "cycles", "x", "DRAM kB", "x", "uJ", "x"):
        table.add_column(column, justify="left" if column == "computed" else "right")
    for name, row in rows.items():
        table.add_row(
            NAMES[name], f"{row['cycles']:,.0f}", f"{row['cycles_ratio']:.2f}", f"{row['dram_bits'] / 8000:.2f}",
            f"{row['dram_ratio']:.2f}", f"{row['picojoules'] / 1e6:.3f}", f"{row['energy_ratio']:.2f}",
        )  # fmt: skip
    console.print(table)
    if any(isinstance(tensor.extra, Shifts) for tensor in state.tensors.values()):
        console.print(
            "stored bits of shared shifts: a sign and a mask bit for each shift of every weight, and the positions of "
            "the shifts of every group; the codes before had as many bits as the column says"
        )
    console.print(f"x: over this network. Layers that stay float are not run on the array; {ENERGY_IS_PLACEHOLDER}")


def _shifts(tensor: QuantizedTensor) -> float:
    """Of a weight; points of a channel are added up."""
    return sum(shifts_of(tensor)) / max(1, len(tensor.codes))
