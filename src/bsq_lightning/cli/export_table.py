"""What is printed about an exported file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bsq_lightning.exporters import Exported, LedgerRow


def print_export(exported: Exported, report: Mapping[str, Any], ledger: Sequence[LedgerRow], certificate: Path) -> None:
    """Sizes with their reasons, what was checked, and where the files are."""
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title="bytes", title_justify="left")
    for column in ("form", "bytes", "what it is made of"):
        table.add_column(column, justify="right" if column == "bytes" else "left", overflow="fold")
    for row in ledger:
        table.add_row(row.form, f"{row.size:,}", row.reason)
    console.print(table)
    for note in exported.notes:
        console.print(f"note: {note}", markup=False)
    for key, value in report.items():
        text = "".join(f"\n  {each}" for each in value) if isinstance(value, list) else value
        console.print(f"{key.replace('_', ' ')}: {text}", markup=False, soft_wrap=True)
    console.print(f"file: {exported.path}", soft_wrap=True, markup=False)
    console.print(f"certificate: {certificate}", soft_wrap=True, markup=False)
    console.print(f"check it anywhere: python -m bsq_lightning.verify {exported.path}", soft_wrap=True, markup=False)
