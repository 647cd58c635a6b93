"""A budget instead of a knob: trials in folders of their own, a record that a later start goes on from, one winner."""

import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from bsq_lightning.cli.search.accident import accident_of
from bsq_lightning.cli.search.bracket import Trial, hopeless, next_values
from bsq_lightning.cli.search.target import Target
from bsq_lightning.files import read_json, write_whole
from bsq_lightning.run_folder import RunFolder, SweepFolder
from bsq_lightning.scheme import Scheme

log = logging.getLogger(__name__)


class Trainings(Protocol):
    """What the search has trained (``trainings.py``)."""

    def train(self, values: dict[Path, float], watch: Callable[[RunFolder], str | None]) -> dict[Path, bool]:
        """Trains values of the knob, each in its folder, to the end of the stage that finds the bits, under a watch
        whose reason stops it; whether each succeeded."""
        ...

    def finish(self, folder: RunFolder) -> bool:
        """Takes a run through its remaining stages; whether it succeeded."""
        ...

    def best(self, complete: dict[Path, Trial]) -> Path:
        """The one to deliver, of those whose bits are found."""
        ...


class Judge(Protocol):
    """Why a network is refused (``judge.py``); empty where it is not."""

    def of_bits(self, bits: dict[str, int | float]) -> str: ...
    def of_summary(self, summary: dict[str, Any]) -> str: ...


@dataclass
class BudgetSearch:
    """Brackets and bisects the knob until a run is within ``tolerance`` below the target, then takes it to its end.

    What counts is what is delivered: the size that a run leaves at its end, of a network that works. Where the one
    chosen turns out to be broken, the search goes on. An accident of a training (``accident.py``) ends the search and
    is not recorded: a later start takes up that training where it was.

    Args:
        path: folder of the search; ``search.json`` in it records every trial that ended.
        target: the budget.
        start: size before the first adjustment, in the target's unit.
        adjustments: precision adjustments of one run.
        knob: key of what is searched.
        value: the first to try.
        grows: whether the size grows with it.
        trainings: trains the trials.
        judge: refuses those that are broken.
        max_runs, tolerance, factor, together: see ``conf/search.yaml``; runs at a time.

    Raises:
        ValueError: a setting that makes no sense, or the folder holds another search.
    """

    path: Path
    target: Target
    start: float
    adjustments: int
    knob: str
    value: float
    grows: bool
    trainings: Trainings
    judge: Judge
    max_runs: int = 8
    tolerance: float = 0.05
    factor: float = 4.0
    together: int = 1

    def __post_init__(self) -> None:
        if self.max_runs < 1 or not 0 < self.tolerance < 1 or self.factor <= 1:
            raise ValueError("search.max_runs is at least 1, search.tolerance between 0 and 1, search.factor above 1")
        if not self.value > 0:
            raise ValueError(f"the search starts at {self.knob}, which must be positive, not {self.value}")
        record = self.path / "search.json"
        self.trials = self._kept(read_json(record)) if record.exists() else []

    def _kept(self, record: Any) -> list[Trial]:
        try:
            # Before any knob could be searched it was alpha, and trials called its value so.
            target, knob = record["target"], record.get("knob", "reg.alpha")
            trials = [
                Trial(**{"value" if k == "alpha" else k: v for k, v in trial.items()}) for trial in record["trials"]
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{self.path / 'search.json'} is not the record of a search ({error})") from error
        if target != asdict(self.target):
            raise ValueError(f"{self.path} holds a search for another target: {target}; choose another folder")
        if knob != self.knob:
            raise ValueError(f"{self.path} holds a search of {knob}, not of {self.knob}; choose another folder")
        # Earlier versions recorded accidents as failures.
        return [trial for trial in trials if not (trial.failed and accident_of(self.folder(trial)))]

    @property
    def name(self) -> str:
        """The knob without its group."""
        return self.knob.rpartition(".")[2]

    def folder(self, trial: Trial | float) -> RunFolder:
        """The run folder of a trial, or of a value of the knob."""
        value = trial.value if isinstance(trial, Trial) else trial
        return RunFolder(self.path / f"{self.name}={value:g}")

    def search(self) -> Trial:
        """Runs trials and takes the best to its end, until one is inside the budget and works; returns it.

        Raises:
            ValueError: none is left.
            AccidentError: a training ended by something else than its network; the same search goes on.
        """
        known = {self.folder(trial).path.name for trial in self.trials}
        begun = [n for n in SweepFolder(self.path).points() if n not in known and n.startswith(f"{self.name}=")]
        if begun:  # an earlier start was interrupted in them
            self._try([float(name.removeprefix(f"{self.name}=")) for name in begun])
        while True:
            self._bracket()
            inside = [trial for trial in self.trials if trial.alive and trial.size <= self.target.value]
            if not inside:
                raise ValueError(self._nothing_left())
            delivered = self._deliver(self._best(inside))
            if delivered.alive and delivered.size <= self.target.value:
                return delivered

    def _bracket(self) -> None:
        while not self._good_enough() and len(self.trials) < self.max_runs:
            count = min(self.together, self.max_runs - len(self.trials))
            values = next_values(self.trials, self.target.value, self.value, self.factor, count, self.grows)
            if not values:
                break
            self._try(values)

    def _good_enough(self) -> bool:
        budget = self.target.value
        low = (1 - self.tolerance) * budget
        inside = [trial for trial in self.trials if trial.alive and trial.size <= budget]
        # One that loses hardly anything is inside already: no value makes it larger.
        return any(t.size >= (1 - self.tolerance) * self.start or (t.size >= low and not t.stopped) for t in inside)

    def _best(self, inside: list[Trial]) -> Trial:
        complete = {self.folder(trial).path: trial for trial in inside if not trial.stopped}
        # One that was stopped goes on to shrink: the largest of them has the least chance to be broken by that.
        return complete[self.trainings.best(complete)] if complete else max(inside, key=lambda trial: trial.size)

    def _try(self, values: list[float]) -> None:
        folders = {self.folder(value).path: value for value in values}
        stopped: dict[Path, str] = {}
        refused: dict[Path, str] = {}

        def watch(folder: RunFolder) -> str | None:
            rows = self.target.adjusted(folder)
            if not rows:
                return None
            bits = {name: layer["to"] for name, layer in rows[-1].get("layers", {}).items()}
            best = max((t.size for t in self.trials if t.alive and t.size <= self.target.value), default=0.0)
            sizes = [self.start, *(self.target.after(row) for row in rows)]
            refused[folder.path] = self.judge.of_bits(bits)
            stopped[folder.path] = refused[folder.path] or hopeless(sizes, self.adjustments, self.target.value, best)
            return stopped[folder.path] or None

        accidents = []
        for path, success in self.trainings.train(folders, watch).items():
            accident = None if success else accident_of(RunFolder(path))
            if accident:
                accidents.append(accident)
                continue
            failed = "" if success else _failure(RunFolder(path))
            trial = Trial(folders[path], self.start, stopped.get(path, ""), failed, refused.get(path, ""))
            if not success or trial.stopped:
                rows = self.target.adjusted(RunFolder(path))
                trial = replace(trial, size=self.target.after(rows[-1]) if rows else self.start)
            else:
                trial = self._judged(trial)
            self.trials.append(trial)
            said = failed or trial.refused or trial.stopped or "complete"
            of = f"{self.target.unit} of {self.target.value:g}"
            log.info("%s %g: %.4g %s (%s)", self.name, trial.value, trial.size, of, said)
            self.record()
        if accidents:  # the one that has to be mended, if there is one
            raise min(accidents, key=lambda accident: accident.exit_status)

    def _deliver(self, trial: Trial) -> Trial:
        folder = self.folder(trial)
        if self.trainings.finish(folder):
            delivered = self._judged(replace(trial, stopped="", finished=True))
        elif accident := accident_of(folder):
            raise accident
        else:
            delivered = replace(trial, failed=_failure(folder))
        self.trials[self.trials.index(trial)] = delivered
        self.record(**({"winner": trial.value} if delivered.alive and delivered.size <= self.target.value else {}))
        if not delivered.alive:
            log.warning("%s is not delivered: %s", folder.path.name, delivered.failed or delivered.refused)
        return delivered

    def _judged(self, trial: Trial) -> Trial:
        """The trial with the size of what its run has left, and the reason to refuse that, if there is one."""
        folder = self.folder(trial)
        scheme = Scheme.load(folder.scheme_file)
        refused = self.judge.of_bits(scheme.precisions())
        if trial.finished and not refused:
            refused = self.judge.of_summary(folder.summary())
        return replace(trial, size=self.target.size(scheme), refused=refused)

    def _nothing_left(self) -> str:
        told = [f"refused: {self.name}={t.value:g}, {t.refused}" for t in self.trials if t.refused]
        told += [f"failed: {self.name}={t.value:g}, {t.failed}" for t in self.trials if t.failed]
        sound = [trial.size for trial in self.trials if trial.alive]
        others = " of the others" if told else ""
        told = [f"the smallest{others} has {min(sound):.4g}", *told] if sound else told
        return (
            f"no run of {len(self.trials)} came inside {self.target.value:g} {self.target.unit} as a network that works"
            f" ({'; '.join(told)}): give a larger target, train longer, raise search.max_runs, or start with another "
            f"{self.knob}"
        )

    def record(self, **more: Any) -> None:
        """Writes ``search.json``."""
        trials = [asdict(trial) for trial in self.trials]
        content = {"target": asdict(self.target), "knob": self.knob, "trials": trials, **more}
        write_whole(self.path / "search.json", json.dumps(content, indent=1))


def _failure(folder: RunFolder) -> str:
    return str((folder.error() or {}).get("message", "failed"))
