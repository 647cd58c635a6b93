"""Points of a sweep, each a training in a process of its own, a few at a time; the run folders hold all results."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bsq_lightning.cli.run.stopping import STOPPED, heard
from bsq_lightning.cli.sweep.progress import Progress
from bsq_lightning.cli.terminal import span
from bsq_lightning.files import open_to_append
from bsq_lightning.run_folder import InUseError, RunFolder

log = logging.getLogger(__name__)
#: Seconds that a run has for saving, from the signal that stops it to SIGKILL.
GRACE = 60


@dataclass(frozen=True)
class Slots:
    """How the machine is shared by the points that run at the same time.

    Args:
        number: points at a time; None takes as many as the GPUs suffice for, or one.
        threads: CPU threads of each process; None shares the cores.
        gpus: ids of the GPUs, dealt out in turn; none on a machine without.
        devices: processes of a point that trains on several devices.

    Raises:
        ValueError: a number below 1.
    """

    number: int | None = None
    threads: int | None = None
    gpus: tuple[str, ...] = ()
    devices: int = 1

    def __post_init__(self) -> None:
        if any(value is not None and value < 1 for value in (self.number, self.threads)):
            raise ValueError(f"hydra.launcher.slots and threads are positive, not {self.number} and {self.threads}")

    @property
    def count(self) -> int:
        return self.number or max(1, len(self.gpus) // self.devices)

    def environment(self, slot: int) -> dict[str, str]:
        """What the process in a slot gets: its threads and its GPUs."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        threads = self.threads or max(1, cores // self.count // self.devices)
        mine = self.gpus[slot % len(self.gpus) :: self.count] if self.gpus else ()
        return {"OMP_NUM_THREADS": str(threads)} | ({"CUDA_VISIBLE_DEVICES": ",".join(mine)} if mine else {})


@dataclass
class _Process:
    folder: RunFolder
    popen: subprocess.Popen[bytes]
    said_before: int  # bytes of its output that are of earlier starts
    started: float = field(default_factory=time.monotonic)


def train_command(
    folder: Path, overrides: Sequence[str], arguments: Sequence[str] = (), command: str = "train"
) -> list[str]:
    """The command that trains one point in ``folder``, or does something else that leaves a run folder; ``arguments``
    are Hydra's (``--config-dir`` and the like)."""
    path = str(folder).replace("\\", "\\\\").replace("'", "\\'")
    here = [f"hydra.run.dir='{path}'", "hydra.mode=RUN"]
    return [sys.executable, "-m", f"bsq_lightning.{command}", *arguments, *overrides, *here]


def float_command(
    folder: Path, overrides: Sequence[str], arguments: Sequence[str] = (), trusted: Sequence[str] = ()
) -> list[str]:
    """The command that trains a float stage to share. One that was begun goes on, for whichever points it was begun;
    its config may name the packages that theirs do."""
    if (folder / "config.yaml").exists():
        trust = [f"trust=[{','.join(trusted)}]"] if trusted else []
        return [sys.executable, "-m", "bsq_lightning.train", f"resume={folder}", "until=float", "logger=none", *trust]
    return train_command(folder, [*overrides, "until=float", "logger=none"], arguments)


def run_points(
    commands: Mapping[Path, Sequence[str]],
    slots: Slots,
    group: str,
    watch: Callable[[RunFolder], str | None] = lambda folder: None,
    progress: Progress | None = None,
    wait: bool = False,
) -> dict[Path, bool]:
    """Runs commands, each for its run folder; says what starts, ends and fails at once. True for those that succeed.

    A failure is in the folder's ``error.json``, all output in its ``output.log``, and the others go on. When this
    process is interrupted, its children are stopped, and the same call goes on later.

    Args:
        commands: command by run folder, in the order to start them.
        slots: how many at a time, and with what.
        group: name of the sweep; the processes find it in ``BSQ_SWEEP``.
        watch: asked about each running folder every second; a reason stops that process (no failure).
        progress: told how the runs go; it says how long the rest takes.
        wait: whether a run that another process trains is waited for, and taken up then; else it is left to that one.

    Raises:
        SystemExit: Ctrl-C, SIGTERM or SIGHUP; the children have saved. A second Ctrl-C kills them.
    """
    progress = progress or Progress({})
    waiting, active, ended = list(commands), {}, {}
    held: list[Path] = []
    with _stopped_together(active):
        while waiting or active or held:
            for slot in range(slots.count):
                if slot not in active and waiting:
                    path = waiting.pop(0)
                    environment = {"BSQ_SWEEP": group, "PYTHONUNBUFFERED": "1"} | slots.environment(slot)
                    active[slot] = _start(path, commands[path], environment)
                    number = len(commands) - len(waiting) - len(held)
                    log.info("%s starts (%d of %d)", _name(path), number, len(commands))
            time.sleep(0.2)
            progress.update(process.folder.path for process in active.values())
            for slot, process in list(active.items()):
                reason = watch(process.folder) if process.popen.poll() is None else None
                if reason:
                    log.info("%s is stopped: %s", _name(process.folder.path), reason)
                    _stop(process.popen)
                if process.popen.poll() is not None:
                    del active[slot]
                    path = process.folder.path
                    if process.popen.returncode == InUseError.exit_status and wait:
                        log.info("%s is trained by another process; waiting for it", _name(path))
                        held.append(path)
                        continue
                    progress.ended(path)
                    ended[path] = reason is not None or _report(process, _standing(len(ended) + 1, commands, progress))
            ready = [path for path in held if RunFolder(path).state != "running"]
            held = [path for path in held if path not in ready]
            waiting += ready
    return ended


@contextmanager
def _stopped_together(active: Mapping[int, "_Process"]) -> Iterator[None]:
    """Ends the children with this process, or they would train on, unseen.

    They are in sessions of their own, so that Ctrl-C reaches this process alone, which lets them save.
    """

    def leave(number: int, frame: Any) -> None:
        sys.exit(128 + number)

    stopping = heard([signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    before = {number: signal.signal(number, leave) for number in stopping}
    try:
        yield
    finally:
        for number in {signal.SIGTERM, signal.SIGHUP} & set(stopping):  # a closed terminal sends several
            signal.signal(number, signal.SIG_IGN)
        try:
            if active:
                log.info("stopping %d running; they save first", len(active))
            for process in active.values():
                process.popen.terminate()
            for process in active.values():
                _stop(process.popen)
        except SystemExit:
            for process in active.values():
                process.popen.kill()
            raise
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _standing(ended: int, commands: Mapping[Path, Sequence[str]], progress: Progress) -> str:
    left = progress.left()
    rest = f", about {span(left)} left" if left and ended < len(commands) else ""
    return f" ({ended} of {len(commands)} ended{rest})"


def _start(path: Path, command: Sequence[str], environment: dict[str, str]) -> _Process:
    path.mkdir(parents=True, exist_ok=True)
    RunFolder(path).forget_error()  # or it would explain the end of a process that dies too early to say anything
    with open(open_to_append(RunFolder(path).output_log), "ab") as output:
        said_before = output.seek(0, os.SEEK_END)
        popen = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    return _Process(RunFolder(path), popen, said_before)


def _stop(popen: "subprocess.Popen[bytes]") -> None:
    popen.terminate()
    try:
        popen.wait(timeout=GRACE)
    except subprocess.TimeoutExpired:
        popen.kill()
        popen.wait()


def _report(process: _Process, standing: str) -> bool:
    folder, code = process.folder, process.popen.returncode
    name, seconds = _name(folder.path), time.monotonic() - process.started
    if code == 0:
        newest = folder.newest_metrics()
        bits = f", {float(newest['mean_precision']):.2f} bits" if newest.get("stage", "float") != "float" else ""
        accuracy = ""
        if folder.is_finished:
            accuracy = f", test accuracy {100 * folder.summary()['accuracy']['final']['test/acc']:.2f} %"
        log.info("%s ends after %s%s%s%s", name, span(seconds), bits, accuracy, standing)
        return True
    if code == InUseError.exit_status:
        log.warning("%s is being trained by another process and left to it", name)
        return False
    if code in STOPPED:
        log.warning("%s was stopped by %s after %s and has saved: the same command goes on", name,
                    STOPPED[code].name, span(seconds))  # fmt: skip
        return False
    if folder.error() is None:
        said = folder.output_log.read_bytes()[process.said_before :].decode(errors="replace")
        ending = said.strip().splitlines()[-3:] or ["nothing"]
        cause = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        folder.record_error(f"{cause}; it last said: {' / '.join(ending)}")
    error = folder.error() or {}
    log.error(
        "%s FAILED after %s: %s: %s (all it said: %s)",
        name, span(seconds), error.get("type"), error.get("message"), folder.output_log,
    )  # fmt: skip
    return False


def _name(path: Path) -> str:
    return f"{path.parent.name}/{path.name}" if path.parent.name == "float" else path.name
