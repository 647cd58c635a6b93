"""How numbers, states and lists are said, alike on the page, in Markdown and on the terminal."""

from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.front import Above
from bsq_lightning.reports.table import Row, Spread


def counted(counts: dict[str, int]) -> str:
    """Runs by state in one line.

    Example:
        >>> counted({"done": 3, "failed": 1})
        '3 done, 1 failed'
    """
    return ", ".join(f"{count} {state}" for state, count in counts.items())


def plural(count: int, word: str) -> str:
    """
    Example:
        >>> plural(1, "run"), plural(2, "run")
        ('1 run', '2 runs')
    """
    return f"{count} {word}" + ("" if count == 1 else "s")


def spread(value: Spread | None, scale: float = 1.0, digits: int = 2) -> str:
    """Mean and, where there is one, the sample standard deviation.

    Example:
        >>> several, one = Spread(0.91, 0.002, 3, 0.908, 0.912), Spread(0.91, None, 1, 0.91, 0.91)
        >>> spread(several, 100), spread(one, 100), spread(None)
        ('91.00 ± 0.20', '91.00', '–')
    """
    if value is None:
        return "–"
    around = "" if value.std is None else f" ± {scale * value.std:.{digits}f}"
    return f"{scale * value.mean:.{digits}f}{around}"


def signed(value: float | None) -> str:
    """A difference in points of accuracy, with its sign."""
    return "–" if value is None else f"{100 * value:+.2f}".replace("-", "−")


#: What is said under every table of settings.
SPREAD = "Mean ± sample standard deviation over seeds, finished runs only."


def above(value: Above | None) -> str:
    """How far above which line.

    Example:
        >>> above(Above(0.0031, "uniform")), above(None)
        ('+0.31 to uniform', '–')
    """
    return "–" if value is None else f"{signed(value.difference)} to {value.line}"


def duration(seconds: float | None) -> str:
    """
    Example:
        >>> duration(42), duration(754), duration(8000)
        ('42 s', '13 min', '2.2 h')
    """
    if seconds is None:
        return "–"
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def seeds(row: Row) -> str:
    """How many of a row's runs are done."""
    return str(len(row.runs)) if len(row.done) == len(row.runs) else f"{len(row.done)} of {len(row.runs)}"


def title(collection: Collection) -> str:
    """What was run, in a few words."""
    groups = [f"{model} on {data}" for model, data in collection.groups]
    if not groups:
        return "No run could be read"
    return groups[0] if len(groups) == 1 else f"{', '.join(groups[:2])}{' and more' if len(groups) > 2 else ''}"


def finished(collection: Collection) -> str:
    """When the first and the last finished run ended; empty if none did."""
    times = sorted(
        str(run.summary["finished"])[:16].replace("T", " ") for run in collection.runs if run.summary.get("finished")
    )
    if not times:
        return ""
    return f"finished {times[0]}" if times[0] == times[-1] else f"finished between {times[0]} and {times[-1]}"


def val_note(values: set[str]) -> str:
    """What the validation images of a group are, as a sentence."""
    notes = {
        "unseen": "Validation images are a split of the training images that no stage has trained on.",
        "seen_in_float": "The float weights were trained on the validation images too; nothing is selected on these.",
        "test set": "Validation accuracy is of the test set itself (data.val_split=0), as papers do it.",
    }
    return " ".join(notes[value] for value in sorted(values) if value in notes)
