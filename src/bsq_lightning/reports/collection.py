"""All runs below some folders, with what is missing and what could not be read: nothing is skipped silently."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from bsq_lightning.reports.runs import Run, read_run
from bsq_lightning.reports.table import Row, rows
from bsq_lightning.run_folder import STATES, SweepFolder


@dataclass(frozen=True)
class Missing:
    """A point that a sweep was asked for and that has no run folder."""

    name: str
    overrides: list[str]


@dataclass(frozen=True)
class Unread:
    """A folder or file that could not be read, with the reason."""

    path: Path
    reason: str


@dataclass
class Collection:
    """What was found below the given folders."""

    folders: list[Path]
    runs: list[Run] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    unread: list[Unread] = field(default_factory=list)

    @property
    def counts(self) -> dict[str, int]:
        """Runs by state (those that occur), missing points and unreadable folders included."""
        counts = {state: sum(run.state == state for run in self.runs) for state in STATES}
        counts |= {"missing": len(self.missing), "unreadable": len(self.unread)}
        return {state: count for state, count in counts.items() if count}

    @cached_property
    def groups(self) -> dict[tuple[str, str], list[Run]]:
        """Runs by (model, data): only these can be compared."""
        groups: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            if run.setting is not None:
                groups.setdefault((run.setting.model, run.setting.data), []).append(run)
        return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))

    @cached_property
    def tables(self) -> dict[tuple[str, str], list[Row]]:
        """The table of each group."""
        return {key: rows(runs) for key, runs in self.groups.items()}


def collect(folders: list[Path]) -> Collection:
    """Reads every run folder at any depth below ``folders``.

    Raises:
        FileNotFoundError: none of the folders exists.
        ValueError: there is no run, no missing point and no broken run below them.
    """
    folders = [folder.expanduser().resolve() for folder in folders]
    result = Collection(folders)
    seen: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            what = "it is a file, not a folder of runs" if folder.exists() else "there is no such folder"
            result.unread.append(Unread(folder, what))
            continue
        _read_below(folder, result, seen, prefix=f"{folder.name}/" if len(folders) > 1 else "")
    if not result.runs and not result.missing:
        reasons = "; ".join(f"{each.path}: {each.reason}" for each in result.unread)
        if not any(folder.is_dir() for folder in folders):
            raise FileNotFoundError(f"no runs to report on: {reasons}")
        raise ValueError(
            f"no runs below {', '.join(map(str, folders))}: "
            + (reasons or "the folder is empty or holds something else")
            + ". A run folder has a config.yaml, written by python -m bsq_lightning.train"
        )
    return result


def _read_below(folder: Path, result: Collection, seen: set[Path], prefix: str) -> None:
    unread: list[Unread] = []
    for run_folder in SweepFolder(folder).runs():
        path = run_folder.path
        if path in seen:
            continue
        seen.add(path)
        name = prefix + (path.relative_to(folder).as_posix() if path != folder else path.name)
        try:
            result.runs.append(read_run(path, name))
        except (ValueError, OSError) as error:
            unread.append(Unread(path, str(error)))
    # A config.yaml deep inside a run folder (a logger's) is that run's own affair.
    inside = {run.path for run in result.runs}
    result.unread += [each for each in unread if not inside.intersection(each.path.parents)]
    for path in sorted(folder.rglob("sweep.json")):
        if inside.intersection(path.parents):
            continue
        try:
            points = SweepFolder(path.parent).points()
            for name, overrides in points.items():
                point = path.parent / name
                if point.resolve() not in seen:
                    shown = prefix + point.relative_to(folder).as_posix()
                    result.missing.append(Missing(shown, [str(override) for override in overrides]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            result.unread.append(Unread(path, f"the list of points cannot be read ({error})"))
