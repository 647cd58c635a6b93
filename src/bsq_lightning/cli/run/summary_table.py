"""What is printed at the end of a run."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme


def print_summary(folder: RunFolder, summary: dict[str, Any]) -> None:
    """Layers and bits, the three compressions, the accuracies."""
    console = Console(width=None if Console().is_terminal else 120)
    if (folder.path / "scheme.json").exists():
        table = Table(title="bits per layer", title_justify="left")
        layers = Scheme.load(folder.path / "scheme.json").layers
        other = any(layer.stored for layer in layers)  # bits that are stored are not those of a code and its sign
        for column in ("layer", "weights", "bits", *(["stored"] if other else []), "step"):
            table.add_column(column, justify="left" if column == "layer" else "right")
        for layer in layers:
            stored = [f"{layer.weight_bits:.2f}"] if other else []
            table.add_row(layer.name, f"{layer.size:,}", f"{layer.precision:.4g}", *stored, f"{layer.step:.3g}")
        console.print(table)
        table = Table(title="size", title_justify="left")
        for column in ("counting", "kB", "compression"):
            table.add_column(column, justify="left" if column == "counting" else "right")
        names = {"paper": "magnitude bits (as the paper counts)", "signed": "with the sign bit", "model": "whole model"}
        for counting, size in summary["sizes"].items():
            ratio = "no bit left" if size["compression"] is None else f"{size['compression']:.2f} x"
            table.add_row(names[counting], f"{size['bits'] / 8000:.2f}", ratio)
        console.print(table)
    table = Table(title=f"accuracy, % (val: {summary['val']})", title_justify="left")
    for column in ("network", "val", "test"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, row in summary["accuracy"].items():
        if row:
            shown = [f"{100 * row[key]:.2f}" if key in row else "-" for key in ("val/acc", "test/acc")]
            table.add_row(name.replace("_", " "), *shown)
    console.print(table)
    console.print(f"run folder: {folder.path}", soft_wrap=True, markup=False)
