"""What stands on a terminal: commands run in one, and an emulator shows its screen."""

import fcntl
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pyte
import pytest
import torch

from bsq_lightning.__main__ import COMMANDS
from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY, run

COLUMNS = 100


def _sit_at_it() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # what a shell has put into the background ignores Ctrl-C


class Terminal:
    """A command in a terminal of 100 columns, tall enough for all it says."""

    def __init__(self, *command: str) -> None:
        self.screen = pyte.Screen(COLUMNS, 400)
        self.stream = pyte.ByteStream(self.screen)
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 400, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command], stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
            preexec_fn=_sit_at_it,
        )  # fmt: skip
        os.close(slave)

    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.screen.display if line.strip()]

    def until(self, condition: Callable[[list[str]], object], seconds: float = 120) -> list[str]:
        """Reads until the screen fulfils a condition; returns its lines."""
        deadline = time.monotonic() + seconds
        while not condition(self.lines()):
            assert time.monotonic() < deadline, "\n".join(self.lines())
            ready, _, _ = select.select([self.master], [], [], 0.2)
            try:
                self.stream.feed(os.read(self.master, 65536) if ready else b"")
            except OSError:  # the process is gone, and all it said has been read
                assert condition(self.lines()), "\n".join(self.lines())
        return self.lines()

    def end(self) -> tuple[int, list[str]]:
        try:
            while True:
                self.stream.feed(os.read(self.master, 65536))
        except OSError:
            return self.process.wait(timeout=60), self.lines()

    def press_control_c(self) -> None:
        os.write(self.master, b"\x03")


def test_log_lines_stand_above_the_bar_and_control_c_saves(tmp_path: Path) -> None:
    long = [*TINY, "data.batch_size=4", "stages.float.epochs=30", f"hydra.run.dir={tmp_path}"]
    terminal = Terminal("bsq_lightning.train", *long)
    lines = terminal.until(lambda lines: any("float 3/30 loss" in line and "left" in line for line in lines))
    epochs = [line for line in lines if re.search(r"^\d\d:\d\d:\d\d I float ./30 \| train/loss [\d.]+", line)]
    assert len(epochs) >= 2  # more where an epoch ended before the screen was read
    bars = [line for line in lines if re.search(r"^ *\d+ %, \d\d:\d\d left \| float \d+/30 loss [\d.]+ acc", line)]
    assert bars == lines[-1:], "\n".join(lines)
    terminal.press_control_c()
    status, lines = terminal.end()
    assert status == 130, "\n".join(lines)
    text = "\n".join(lines)
    assert "Ctrl-C: saved after batch" in text and "Traceback" not in text
    command = text.rpartition("go on with: ")[2].replace("\n", "")
    assert shlex.split(command) == ["python", "-m", "bsq_lightning.train", f"resume={tmp_path}"]
    assert "within_epoch" in torch.load(RunFolder(tmp_path).last, weights_only=True)
    assert "float 2/30 | train/loss" in (tmp_path / "train.log").read_text()
    assert RunFolder(tmp_path).state == "unfinished"


@pytest.mark.slow
def test_a_sweep_shows_how_far_it_is_and_ends_without_a_traceback(tmp_path: Path) -> None:
    sweep = [*TINY, "data.batch_size=4", "quant.act_precision=4,8", f"hydra.sweep.dir={tmp_path}"]
    terminal = Terminal("bsq_lightning.train", "-m", *sweep)
    terminal.until(lambda lines: re.search(r"% of all epochs, [\d:?]+ left \| \S+ \d/\d", "\n".join(lines)))
    terminal.press_control_c()
    status, lines = terminal.end()
    text = "\n".join(lines)
    assert status == 130 and "Traceback" not in text, text
    assert "stopped by Ctrl-C; go on with: python -m bsq_lightning.train -m" in text


@pytest.mark.slow
def test_a_preflight_of_a_sweep_leaves_nothing(tmp_path: Path) -> None:
    code, output = run("train", "-m", *TINY, "quant.act_precision=4,8", "preflight=only", cwd=tmp_path)
    assert code == 0, output
    assert output.count("training in all") == 2
    assert list(tmp_path.iterdir()) == []
    code, output = run("train", "-m", *TINY, "+model.num_classes=10,5", "preflight=only", cwd=tmp_path)
    assert code == 1 and "FAILED" in output, output
    assert list(tmp_path.iterdir()) == []


def test_help_says_purpose_examples_and_every_group() -> None:
    code, output = run("train", "--help")
    assert code == 0
    assert output.count("python -m bsq_lightning.train") == 6
    of_train = {path.name for path in Path(CONF_DIR).iterdir() if path.is_dir()} - {
        "export",
        "ptq",
        "sensitivity",
        "hydra",
    }
    assert of_train <= set(re.findall(r"\w+", output.partition("Groups:")[2].partition("callbacks:")[0]))


@pytest.mark.parametrize("module", ["bsq_lightning", *(f"bsq_lightning.{name}" for name in ("train", "sweep"))])
def test_the_version_is_ours(module: str) -> None:
    from bsq_lightning import __version__

    said = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True)
    assert said.stdout == f"bsq_lightning {__version__}\n"


def test_the_commands_are_listed() -> None:
    said = subprocess.run([sys.executable, "-m", "bsq_lightning"], capture_output=True, text=True).stdout
    package = Path(__file__).parents[2] / "src" / "bsq_lightning"
    mains = {path.stem for path in package.glob("*.py") if "def main()" in path.read_text()} - {"__main__"}
    assert mains == set(COMMANDS)
    assert all(re.search(rf"^  python -m bsq_lightning\.{name} .+\.$", said, re.M) for name in COMMANDS), said


def test_an_installed_command_finds_a_package_of_this_folder(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from bsq_lightning.models import ResNetCifar\n")
    program = "import sys; sys.path = [p for p in sys.path if p]; from bsq_lightning.train import main; main()"
    asked = ["preflight=only", *TINY, "model._target_=mine.ResNetCifar", "stages.bits.epochs=0"]
    said = subprocess.run([sys.executable, "-c", program, *asked], capture_output=True, text=True, cwd=tmp_path)
    assert said.returncode == 0, said.stdout + said.stderr


def test_nothing_is_said_after_the_last_table(tmp_path: Path) -> None:
    asked = ["preflight=only", *TINY, "stages.bits.epochs=0"]
    said = subprocess.run(
        [sys.executable, "-m", "bsq_lightning.train", *asked], capture_output=True, text=True, cwd=tmp_path
    )
    assert said.returncode == 0 and "leaked" not in said.stdout + said.stderr, said.stderr


def test_a_loading_process_that_is_killed_while_it_speaks_stops_nobody() -> None:
    """It is forked, and names broken images above the bar; under tqdm's own lock the next message waits for ever."""
    script = """
import logging, os, signal, sys
import tqdm
from bsq_lightning.cli.terminal import Terminal

logging.root.handlers = [Terminal()]
logging.warning("before")
child = os.fork()
if not child:
    with tqdm.tqdm.external_write_mode(file=sys.stdout):
        os.kill(os.getpid(), signal.SIGKILL)
os.waitpid(child, 0)
logging.warning("after")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout.split() == ["before", "after"], done.stderr
