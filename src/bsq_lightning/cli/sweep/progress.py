"""How far the points of a sweep are, and how long the rest takes."""

import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from bsq_lightning.run_folder import RunFolder


class Progress:
    """Counts the epochs of runs from their folders; on a terminal it draws them as one line at the bottom.

    Args:
        epochs: by stage, of each run that is to be trained, by its folder; of one that goes on, all. Stages that
            it takes over from elsewhere are left out.

    Example:
        >>> progress = Progress({})
        >>> progress.update([]), progress.left()
        (None, None)
    """

    def __init__(self, epochs: Mapping[Path, Mapping[str, int]]) -> None:
        self.stages = {path: set(stages) for path, stages in epochs.items()}
        self.epochs = {path: sum(stages.values()) for path, stages in epochs.items()}
        self._done = dict.fromkeys(self.epochs, 0)
        self._begun = 0
        self._started = time.monotonic()
        self.bar: tqdm[Any] | None = None

    def begin(self) -> None:
        """Notes what is trained already: the time left is counted from here on."""
        self.update(self.epochs)
        self._begun = sum(self._done.values())
        self._started = time.monotonic()
        if self.epochs and sys.stdout.isatty():
            self.bar = tqdm(
                total=sum(self.epochs.values()), initial=self._begun, smoothing=0, leave=False, dynamic_ncols=True,
                file=sys.stdout, bar_format="{percentage:3.0f} % of all epochs, {remaining} left | {desc} {bar}",
            )  # fmt: skip

    def update(self, running: Iterable[Path]) -> None:
        """Looks into the folders of runs that are trained now."""
        places = []
        for path in running:
            if path in self._done:
                rows = [row for row in RunFolder(path).metrics() if row["stage"] in self.stages[path]]
                self._done[path] = min(len(rows), self.epochs[path])
                places.append(f"{path.name} {self._done[path]}/{self.epochs[path]}")
        if self.bar is not None:
            self.bar.set_description_str(", ".join(places), refresh=False)
            self.bar.n = sum(self._done.values())
            self.bar.refresh()

    def ended(self, path: Path) -> None:
        """A run ended, well or not: nothing of it is left to wait for."""
        self._done[path] = self.epochs.get(path, 0)

    def left(self) -> float | None:
        """Seconds, at the speed so far; None before the first epoch."""
        done = sum(self._done.values())
        if done <= self._begun:
            return None
        return (time.monotonic() - self._started) / (done - self._begun) * (sum(self.epochs.values()) - done)

    def close(self) -> None:
        """Takes the line away."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
