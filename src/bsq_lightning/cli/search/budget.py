"""A budget instead of alpha: trials in folders of their own, a record that a later start goes on from, one winner."""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bsq_lightning.cli.search.bracket import Trial, hopeless, inside, next_alphas
from bsq_lightning.files import read_json, write_whole
from bsq_lightning.run_folder import RunFolder, SweepFolder
from bsq_lightning.scheme import Scheme

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Target:
    """The budget: exactly one of kilobytes (whole model), mean_bits (paper's counting) and gbops.

    Raises:
        ValueError: none or several are given, or one is not positive.
    """

    kilobytes: float | None = None
    mean_bits: float | None = None
    gbops: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"give one target: target.kilobytes, target.mean_bits or target.gbops ({len(given)} are given)"
            )
        if not all(value > 0 and math.isfinite(value) for value in given.values()):
            raise ValueError(f"the target must be a positive number: {given}")

    @property
    def unit(self) -> str:
        return {"kilobytes": "kB", "mean_bits": "bits", "gbops": "GBOPs"}[self.name]

    @property
    def value(self) -> float:
        return getattr(self, self.name)

    @property
    def name(self) -> str:
        """Which of the three it is."""
        return next(name for name, value in asdict(self).items() if value is not None)

    def size(self, scheme: Scheme) -> float:
        """The size of a scheme in the target's unit."""
        size = {"kilobytes": scheme.bits("model") / 8000, "mean_bits": scheme.mean_precision, "gbops": scheme.gbops}
        return float(size[self.name] or 0.0)

    def after_adjustments(self, folder: RunFolder) -> list[float]:
        """Sizes after each adjustment so far, from the run folder."""
        key = {"kilobytes": "kilobytes_after", "mean_bits": "mean_precision_after", "gbops": "gbops_after"}[self.name]
        rows = folder.adjustments()
        # Those of the stage that the search is about: the first that is adjusted.
        return [row[key] for row in rows if row.get("stage") == rows[0].get("stage")]


@dataclass
class BudgetSearch:
    """Brackets and bisects alpha until a run is within ``tolerance`` below the target, or the runs are used up.

    Args:
        path: folder of the search; ``search.json`` in it records every trial that ended.
        target: the budget.
        start: size before the first adjustment, in the target's unit.
        adjustments: precision adjustments of one run.
        alpha: the first to try.
        train: trains alphas to the end of the bits stage, each in the folder given, under a watch that stops it;
            returns whether each succeeded.
        max_runs, tolerance, factor, together: see ``conf/search.yaml``; runs at a time.
    """

    path: Path
    target: Target
    start: float
    adjustments: int
    alpha: float
    train: Callable[[dict[Path, float], Callable[[RunFolder], str | None]], dict[Path, bool]]
    max_runs: int = 8
    tolerance: float = 0.05
    factor: float = 4.0
    together: int = 1

    def __post_init__(self) -> None:
        if self.max_runs < 1 or not 0 < self.tolerance < 1 or self.factor <= 1:
            raise ValueError("search.max_runs is at least 1, search.tolerance between 0 and 1, search.factor above 1")
        if not self.alpha > 0:
            raise ValueError(f"the search starts at reg.alpha, which must be positive, not {self.alpha}")
        self.trials: list[Trial] = []
        record = self.path / "search.json"
        if record.exists():
            kept = read_json(record)
            if kept["target"] != asdict(self.target):
                raise ValueError(
                    f"{self.path} holds a search for another target: {kept['target']}; choose another folder"
                )
            self.trials = [Trial(**trial) for trial in kept["trials"]]

    def folder(self, alpha: float) -> RunFolder:
        """The run folder of an alpha."""
        return RunFolder(self.path / f"alpha={alpha:g}")

    def search(self) -> list[Trial]:
        """Runs trials until one is good enough; returns those inside the budget, the largest first.

        Raises:
            ValueError: no run came inside the budget.
        """
        budget = self.target.value
        known = {self.folder(trial.alpha).path.name for trial in self.trials}
        begun = [n for n in SweepFolder(self.path).points() if n not in known and n.startswith("alpha=")]
        if begun:  # an earlier start was interrupted in them
            self._try([float(name.removeprefix("alpha=")) for name in begun])
        while not self._good_enough() and len(self.trials) < self.max_runs:
            count = min(self.together, self.max_runs - len(self.trials))
            alphas = next_alphas(self.trials, budget, self.alpha, self.factor, count)
            if not alphas:
                break
            self._try(alphas)
        found = sorted((t for t in self.trials if t.size <= budget and not t.failed), key=lambda t: -t.size)
        if not found:
            smallest = min((t.size for t in self.trials if not t.failed), default=math.nan)
            raise ValueError(
                f"no run of {len(self.trials)} came inside {budget:g} {self.target.unit} (the smallest has "
                f"{smallest:.4g}): raise search.max_runs, start with a larger reg.alpha, or train longer"
            )
        return found

    def _good_enough(self) -> bool:
        low, budget = (1 - self.tolerance) * self.target.value, self.target.value
        # Without any penalty it is inside already: no alpha makes it larger.
        free = any(inside(t, budget) and t.size >= (1 - self.tolerance) * self.start for t in self.trials)
        return free or any(low <= t.size <= budget and not (t.stopped or t.failed) for t in self.trials)

    def _try(self, alphas: list[float]) -> None:
        folders = {self.folder(alpha).path: alpha for alpha in alphas}
        stopped: dict[Path, str] = {}

        def watch(folder: RunFolder) -> str | None:
            sizes = [self.start, *self.target.after_adjustments(folder)]
            best = max((t.size for t in self.trials if t.size <= self.target.value and not t.failed), default=0.0)
            reason = hopeless(sizes, self.adjustments, self.target.value, best)
            if reason:
                stopped[folder.path] = reason
            return reason or None

        for path, success in self.train(folders, watch).items():
            sizes = self.target.after_adjustments(RunFolder(path))
            failed = "" if success else str((RunFolder(path).error() or {}).get("message", "failed"))
            size = sizes[-1] if sizes else self.start
            self.trials.append(Trial(folders[path], size, stopped.get(path, ""), failed))
            said = stopped.get(path) or failed or "complete"
            log.info("alpha %g: %.4g %s of %g (%s)", folders[path], size, self.target.unit, self.target.value, said)
            self.record()

    def record(self, **more: Any) -> None:
        """Writes ``search.json``."""
        content = {"target": asdict(self.target), "trials": [asdict(trial) for trial in self.trials], **more}
        write_whole(self.path / "search.json", json.dumps(content, indent=1))
