"""The table of a sweep's points, from the folders alone."""

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from bsq_lightning.files import read_json
from bsq_lightning.run_folder import RunFolder, SweepFolder

COLOURS = {"done": "green", "running": "cyan", "failed": "red", "unfinished": "yellow", "missing": "yellow"}


def point_states(sweep: SweepFolder) -> dict[str, str]:
    """``done``, ``running``, ``failed``, ``unfinished`` or ``missing``, by folder; listed points first.

    Raises:
        FileNotFoundError: no such folder, or neither a run in it nor a list of points.
    """
    found = {str(run.path.relative_to(sweep.path)): run.state for run in sweep.runs()}
    states = dict.fromkeys(sweep.points(), "missing") | found
    if not states:
        raise FileNotFoundError(f"{sweep.path} holds no runs: give the folder of a sweep (hydra.sweep.dir)")
    return states


def print_status(sweep: SweepFolder) -> bool:
    """Prints the table and the counts; whether no point has failed."""
    states = point_states(sweep)
    table = Table(title=escape(str(sweep.path)), title_justify="left")
    for column in ("point", "state", "at", "bits", "compression", "accuracy, %"):
        table.add_column(column, justify="left" if column in ("point", "state", "at") else "right", overflow="fold")
    errors = []
    for name, state in states.items():
        folder = RunFolder(sweep.path / name)
        table.add_row(Text(name), Text(state, COLOURS[state]), *_progress(folder, state))
        if state == "failed":
            try:
                error = folder.error() or {}
                errors.append(f"{name}: {error.get('type')}: {error.get('message')}")
            except ValueError as problem:
                errors.append(str(problem))
    console = Console(width=None if Console().is_terminal else 140)
    console.print(table)
    for error in errors:
        console.print(Text(f"failed  {error}", "red"))
    counts = {state: list(states.values()).count(state) for state in COLOURS}
    console.print(", ".join(f"{number} {state}" for state, number in counts.items() if number))
    return not counts["failed"]


def _progress(folder: RunFolder, state: str) -> tuple[str, str, str, str]:
    """Where it is, bits, compression as the paper counts, accuracy (test of a run that is done, else validation)."""
    try:
        row = folder.newest_metrics()
        at = f"{row['stage']}, epoch {int(row['epoch']) + 1}" if row else ""
        if state == "done":
            summary = read_json(folder.summary_file)
            ratio = summary["sizes"]["paper"]["compression"]
            final = summary["accuracy"]["final"]["test/acc"]
            shown = "no bit left" if ratio is None else f"{ratio:.2f} x"
            return at, f"{summary['mean_precision']:.2f}", shown, f"{100 * final:.2f} test"
        accuracy = f"{100 * float(row['val/acc']):.2f} val" if row.get("val/acc") else ""
        if not row or not row.get("compression_paper") or row["stage"] == "float":
            return at, "", "", accuracy
        return at, f"{float(row['mean_precision']):.2f}", f"{float(row['compression_paper']):.2f} x", accuracy
    except (ValueError, KeyError, TypeError) as problem:
        return f"cannot be read: {problem}", "", "", ""
