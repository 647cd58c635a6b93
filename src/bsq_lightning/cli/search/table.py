"""What is printed at the end of a search."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bsq_lightning.cli.search.bracket import Trial
from bsq_lightning.cli.search.budget import Target


def print_search(trials: list[Trial], target: Target, winner: Trial) -> None:
    """Every alpha tried, in the order of alpha, and which one was taken."""
    table = Table(title=f"largest network inside {target.value:g} {target.unit}", title_justify="left")
    for column in ("alpha", target.unit, "", "how it ended"):
        table.add_column(column, justify="right" if column in ("alpha", target.unit) else "left")
    for trial in sorted(trials, key=lambda trial: trial.alpha):
        where = "chosen" if trial is winner else "inside" if trial.size <= target.value else "too large"
        ended = trial.failed or trial.stopped or "bits stage complete"
        table.add_row(f"{trial.alpha:g}", f"{trial.size:.4g}", "failed" if trial.failed else where, Text(ended))
    Console(width=None if Console().is_terminal else 120).print(table)
