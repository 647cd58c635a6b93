"""What is printed at the end of a search."""

from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsq_lightning.cli.search.bracket import Trial
from bsq_lightning.cli.search.target import Target


def print_search(trials: Sequence[Trial], knob: str, target: Target, winner: Trial | None = None) -> None:
    """Every value tried, in its order, with what came of it, and which one is delivered."""
    table = Table(title=f"largest network inside {target.value:g} {target.unit}", title_justify="left")
    for column in (knob, target.unit, "", "how it ended"):
        table.add_column(column, justify="right" if column in (knob, target.unit) else "left")
    for trial in sorted(trials, key=lambda trial: trial.value):
        where = "inside" if trial.size <= target.value else "too large"
        where = "failed" if trial.failed else "refused" if trial.refused else where
        ended = trial.failed or trial.refused or trial.stopped or ("complete" if trial.finished else "bits found")
        table.add_row(f"{trial.value:g}", f"{trial.size:.4g}", "delivered" if trial is winner else where, Text(ended))
    if trials:
        _console().print(table)


def print_delivered(trial: Trial, knob: str, target: Target, summary: dict[str, Any]) -> None:
    """Size and accuracy of what lies in the folder, and what it lost against the float network."""
    accuracy, float_accuracy = (100 * summary["accuracy"][name]["test/acc"] for name in ("final", "float"))
    _console().print(
        f"delivered: {knob}={trial.value:g}, {trial.size:.4g} {target.unit} of {target.value:g}, test accuracy "
        f"{accuracy:.2f} %, {accuracy - float_accuracy:+.2f} points against float ({float_accuracy:.2f} %)",
        soft_wrap=True, markup=False,
    )  # fmt: skip


def _console() -> Console:
    return Console(width=None if Console().is_terminal else 120)
