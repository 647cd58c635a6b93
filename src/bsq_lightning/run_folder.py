"""The run folder and the sweep folder: contracts that all commands read.

A run folder: ``config.yaml`` (resolved; resume reads it) beside Hydra's ``.hydra/``; ``checkpoints/last.ckpt`` (newest
state, its stage inside), ``previous.ckpt`` and one for the end of each other stage (``float.ckpt``, ``bits.ckpt``);
``metrics.csv`` (every epoch), ``adjustments.jsonl`` (every adjustment), ``scheme.json`` (bits found),
``quantized.safetensors`` (codes and steps of the newest stage's end), ``stages.json`` (results of the stages that are
done), ``card.yaml`` and ``card.md`` (the quantization card), ``summary.json``, written last: the run is finished;
``error.json``, the failure of the last start, if it failed; ``.running.lock``, held by the process that trains in the
folder and given up by its death; ``wandb.json`` and ``wandb/``, the id and the files of the mirror on W&B, which
nothing reads back.

A sweep folder: ``sweep.json`` (the points that were asked for) above one run folder for each; ``jobs.json``, the newest
SLURM job of each, where they are trained on a cluster. A search's is one with ``search.json``, the trials that ended,
and ``.searching.lock``, held by the process that searches.
"""

import csv
import io
import json
import os
import socket
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from bsq_lightning.files import (
    append_line,
    check_inside,
    copy_whole,
    cut_lines,
    read_json,
    remove_leftovers,
    whole_lines,
    write_whole,
)

STATES = ("done", "running", "failed", "unfinished")
#: The columns of ``metrics.csv``, one row an epoch.
COLUMNS: tuple[str, ...] = (
    "stage", "epoch", "step", "lr", "train/loss", "train/penalty", "train/acc", "val/loss", "val/acc", "val/top5",
    "mean_precision", "compression_paper", "compression_signed", "compression_model", "seconds",
)  # fmt: skip
#: Bytes that have to fit before anything is trained: config, logs, and a table or two.
_FIRST_BYTES = 2**16


class InUseError(ValueError):
    """Another process trains in this folder; the exit status is then 75, for "try again later" (EX_TEMPFAIL)."""

    exit_status = 75


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder and its small JSON files.

    Args:
        path: the folder.
        writer: whether this process writes what the run leaves; of the ranks of a run, rank 0 does.
    """

    path: Path
    writer: bool = True

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """A folder that a run was started in.

        Raises:
            FileNotFoundError: the folder is missing or no run folder.
        """
        folder = cls(Path(path).expanduser().resolve())
        if folder.path.exists() and not folder.path.is_dir():
            raise FileNotFoundError(f"{folder.path} is not a run folder but a file")
        if not folder.config.is_file():
            begun = any((folder.path / name).exists() for name in (".hydra", "train.log", folder._lock.name))
            raise FileNotFoundError(
                f"{folder.path} has no config.yaml: its run was stopped before anything was settled or trained. Give "
                f"the same command again, with hydra.run.dir={folder.path}"
                if begun
                else f"{folder.path} is not a run folder: it has no config.yaml"
            )
        return folder

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        """The newest state; the one before it is beside it."""
        return self.checkpoints / "last.ckpt"

    def end_of(self, stage: str) -> Path:
        """The checkpoint of the end of a stage that is not the last."""
        return self.checkpoints / f"{stage}.ckpt"

    @property
    def damage_file(self) -> Path:
        return self.path / "damage.json"

    @property
    def metrics_file(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def adjustments_file(self) -> Path:
        return self.path / "adjustments.jsonl"

    @property
    def scheme_file(self) -> Path:
        return self.path / "scheme.json"

    @property
    def quantized_file(self) -> Path:
        return self.path / "quantized.safetensors"

    @property
    def card_file(self) -> Path:
        """The quantization card; ``card.md`` beside it is the same to be read."""
        return self.path / "card.yaml"

    @property
    def summary_file(self) -> Path:
        return self.path / "summary.json"

    @property
    def output_log(self) -> Path:
        """All that a point of a sweep printed."""
        return self.path / "output.log"

    @property
    def _stages_file(self) -> Path:
        return self.path / "stages.json"

    @property
    def _error_file(self) -> Path:
        return self.path / "error.json"

    def check_writable(self) -> None:
        """Raises PermissionError, with the path, where nothing can be written. (A full disk takes an empty file.)"""
        try:
            write_whole(self.checkpoints / ".writable", bytes(_FIRST_BYTES))
            (self.checkpoints / ".writable").unlink()
        except OSError as error:
            raise PermissionError(
                f"the run folder {self.path} cannot be written ({os.strerror(error.errno or 0)}): "
                "choose another with hydra.run.dir=FOLDER"
            ) from error

    @property
    def is_finished(self) -> bool:
        """Whether the run wrote its summary, which it does last."""
        return self.summary_file.exists()

    def results(self) -> dict[str, Any]:
        """Results by stage, of the stages that are done."""
        return read_json(self._stages_file) if self._stages_file.exists() else {}

    def newest_metrics(self) -> dict[str, str]:
        """The last whole row of ``metrics.csv``; empty before the first epoch ends."""
        lines = whole_lines(self.metrics_file)
        return next(csv.DictReader(lines[:1] + lines[-1:])) if len(lines) > 1 else {}

    def add_result(self, stage: str, result: dict[str, Any]) -> None:
        """Records a finished stage."""
        if self.writer:
            write_whole(self._stages_file, json.dumps({**self.results(), stage: result}, indent=1))

    def keep_checkpoint(self, stage: str) -> None:
        """Keeps the newest checkpoint as that of the end of ``stage``."""
        if self.writer:
            copy_whole(self.last, self.end_of(stage))

    def write_damage(self, stage: str, epoch: int, losses: dict[str, float]) -> None:
        """Keeps what rounding cost every tensor in the newest epoch of each stage, in units of the training loss."""
        if self.writer:
            row = {"epoch": epoch, "total": sum(losses.values()), "layers": losses}
            write_whole(self.damage_file, json.dumps({**self.damage(), stage: row}, indent=1))

    def damage(self) -> dict[str, Any]:
        """By stage: ``epoch`` (from 0), ``total`` and ``layers``; empty where nothing was measured."""
        return json.loads(self.damage_file.read_text()) if self.damage_file.exists() else {}

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes ``summary.json``: from now on the run is finished."""
        if self.writer:
            write_whole(self.summary_file, json.dumps(summary, indent=1))

    def add_metrics(self, row: dict[str, Any]) -> None:
        """Appends a row of ``COLUMNS`` to ``metrics.csv``."""
        if not self.metrics_file.exists():
            write_whole(self.metrics_file, ",".join(COLUMNS) + "\n")
        line = io.StringIO()
        csv.DictWriter(line, COLUMNS, restval="", lineterminator="").writerow(row)
        append_line(self.metrics_file, line.getvalue())

    def write_scheme(self, text: str) -> Path:
        """Writes ``scheme.json``; returns its path."""
        write_whole(self.scheme_file, text)
        return self.scheme_file

    def cut_metrics(self, stage: str, epoch: int) -> None:
        """Drops the rows of ``metrics.csv`` from this epoch of this stage on, which are trained again."""
        cut_lines(self.metrics_file, _before(stage, epoch, lambda line: line.split(",")[:2]))

    def write_metrics(self, rows: list[dict[str, str]]) -> None:
        """Puts ``rows`` in the place of ``metrics.csv``."""
        out = io.StringIO()
        writer = csv.DictWriter(out, list(rows[0]) if rows else COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(self.metrics_file, out.getvalue())

    def add_adjustment(self, row: dict[str, Any]) -> None:
        """Appends a row to ``adjustments.jsonl``; it has at least ``stage`` and ``epoch``."""
        append_line(self.adjustments_file, json.dumps(row))

    def cut_adjustments(self, stage: str, epoch: int, step: int = 0) -> None:
        """Drops the rows of ``adjustments.jsonl`` that are trained again: those of this stage from this epoch on; of
        adjustments within an epoch, those behind so many steps of the optimizer."""

        def place(line: str) -> tuple[str, int]:
            row = json.loads(line)
            again = row["step"] > step if "step" in row else row["epoch"] >= epoch
            # When bits were the only stage, rows did not name it.
            return row.get("stage", stage), max(epoch, row["epoch"]) if again else -1

        cut_lines(self.adjustments_file, _before(stage, epoch, place))

    def adjustments(self) -> list[dict[str, Any]]:
        """The rows of ``adjustments.jsonl`` so far."""
        return [json.loads(line) for line in whole_lines(self.adjustments_file)]

    def metrics(self) -> list[dict[str, str]]:
        """The rows of ``metrics.csv`` so far."""
        return list(csv.DictReader(whole_lines(self.metrics_file)))

    def steps(self) -> dict[str, int]:
        """Optimizer steps of each stage so far, in the order of the stages."""
        return {row["stage"]: int(row["step"]) for row in self.metrics()}

    @contextmanager
    def running(self) -> Iterator[None]:
        """Marks the folder as in use by this process, until the block ends or the process dies.

        Of the ranks of a run, the writer holds the mark.

        Raises:
            InUseError: another process trains here.
            ValueError: a link leads out of the folder.
        """
        if not self.writer:
            yield
            return
        check_inside(self.path)
        with _locked(self._lock, f"{self.path} is in use: another process is training in this folder"):
            for folder in (self.path, self.checkpoints):
                remove_leftovers(folder)
            yield

    @contextmanager
    def recording_errors(self) -> Iterator[None]:
        """Forgets the error of an earlier start and keeps one that leaves the block.

        Of the ranks of a run, the first error is kept: those of the others follow from it.
        """
        if self.writer:
            self.forget_error()
        try:
            yield
        except Exception as error:
            # On a full disk this record is lost; the error itself is shown whatever happens.
            with suppress(OSError):
                if self.error() is None:
                    self.record_error(error)
            raise

    @property
    def state(self) -> str:
        """``done``, ``running``, ``failed`` (see ``error``) or ``unfinished`` (stopped or killed; it can go on)."""
        if self.is_finished:
            return "done"
        if self._lock.is_file() and not self._lock.is_symlink():
            lock = FileLock(self._lock)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                return "running"
            lock.release()
        return "failed" if self._error_file.exists() else "unfinished"

    @property
    def _lock(self) -> Path:
        return self.path / ".running.lock"

    def record_error(self, error: BaseException | str) -> None:
        """Keeps what the last start failed with: type, message, traceback, host, time."""
        known = isinstance(error, BaseException)
        content = {
            "type": type(error).__name__ if known else "Ended",
            "message": str(error),
            "traceback": "".join(traceback.format_exception(error)) if known else "",
            "host": f"{socket.gethostname()}:{os.getpid()}",
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_whole(self._error_file, json.dumps(content, indent=1))

    def forget_error(self) -> None:
        """A new start: what the one before failed with is past."""
        self._error_file.unlink(missing_ok=True)

    def error(self) -> dict[str, Any] | None:
        """What the last start failed with, if it failed."""
        path = self._error_file
        return read_json(path) if path.exists() else None

    def summary(self) -> dict[str, Any]:
        """``summary.json``.

        Raises:
            FileNotFoundError: the run is not finished.
            ValueError: it is no summary of a run: it has no test accuracy.
        """
        if not self.is_finished:
            raise FileNotFoundError(
                f"{self.path} is not finished (no summary.json): continue it with "
                f"python -m bsq_lightning.train resume={self.path}"
            )
        summary: Any = read_json(self.summary_file)
        try:
            float(summary["accuracy"]["final"]["test/acc"])
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{self.summary_file} is no summary of a run, it has no accuracy.final.test/acc: take it away, and "
                f"python -m bsq_lightning.train resume={self.path} writes it again"
            ) from error
        return summary


@contextmanager
def _locked(path: Path, said: str) -> Iterator[None]:
    """Holds a lock until the block ends or the process dies; raises InUseError where another process has it."""
    lock = FileLock(path)
    try:
        # A reader of `state` holds the lock of a run for an instant.
        lock.acquire(timeout=2)
    except Timeout:
        raise InUseError(said) from None
    try:
        yield
    finally:
        lock.release()


def _before(stage: str, epoch: int, place: Callable[[str], Sequence[Any]]) -> Callable[[str], bool]:
    """Whether a line comes before this epoch of this stage; ``place`` gives a line's stage and epoch. Lines are asked
    about in their order, and what stands behind the first that goes, goes too."""
    gone = False

    def keep(line: str) -> bool:
        nonlocal gone
        if not gone and not line.startswith("stage,"):
            at, number = place(line)
            gone = at == stage and int(number) >= epoch
        return not gone

    return keep


@dataclass(frozen=True)
class SweepFolder:
    """A folder of run folders, with the list of the points that were asked for."""

    path: Path

    def points(self) -> dict[str, list[str]]:
        """Overrides by run folder (relative to the sweep folder), of every point ever asked for here.

        Raises:
            ValueError: ``sweep.json`` holds something else.
        """
        path = self.path / "sweep.json"
        points: Any = read_json(path).get("points") if path.exists() else {}
        if not isinstance(points, dict) or not all(
            isinstance(point, list) and all(isinstance(each, str) for each in point) for point in points.values()
        ):
            raise ValueError(
                f"{path} is no list of the points of a sweep, {{points: {{FOLDER: [OVERRIDE, ...]}}}}: take it "
                "away, and the command of the sweep writes it again"
            )
        return points

    def add_points(self, points: dict[str, list[str]]) -> None:
        """Adds points to the list; those already there are replaced."""
        write_whole(self.path / "sweep.json", json.dumps({"points": {**self.points(), **points}}, indent=1))

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Marks the folder as that of a search that is under way, until the block ends or the process dies.

        Raises:
            InUseError: another process searches here.
        """
        with _locked(self.path / ".searching.lock", f"{self.path} is in use: another search is under way in it"):
            yield

    @property
    def float_stages(self) -> Path:
        """Where the shared float stages are trained, in run folders that stop after them."""
        return self.path / "float"

    def runs(self) -> list[RunFolder]:
        """The run folders in this folder, at any depth, sorted; without the shared float stages.

        Raises:
            FileNotFoundError: no such folder.
        """
        if not self.path.is_dir():
            raise FileNotFoundError(f"there is no folder {self.path}")
        found = {path.parent for name in ("config.yaml", "error.json") for path in self.path.rglob(name)}
        return [
            RunFolder(path)
            for path in sorted(found)
            # W&B keeps a config.yaml of its own below a run folder.
            if path.name != ".hydra" and found.isdisjoint(path.parents) and not _is_float_stage(path)
        ]


def _is_float_stage(path: Path) -> bool:
    """Whether the folder is a sweep's shared float stage, whose result every point that uses it has in its own."""
    sweep = SweepFolder(path.parent.parent)
    return path.parent == sweep.float_stages and (sweep.path / "sweep.json").exists()
