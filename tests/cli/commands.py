"""Runs the commands as a user does, in processes of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

#: A few seconds of every stage on digits with a tiny ResNet.
TINY = [
    "experiment=quickstart", "model._target_=bsq_lightning.models.ResNetCifar", "+model.depth=8", "~model.shortcut",
    "data.limit_train=256", "data.batch_size=64", "reg.alpha=20", "stages.bits.optimizer.weight_decay=0.05",
    "stages.float.epochs=1", "stages.bits.epochs=4", "stages.bits.adjust_every_n_epochs=2", "stages.finetune.epochs=2",
    "logger=none",
]  # fmt: skip


InProcess = Callable[..., tuple[int, str]]


def in_process(
    main: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> InProcess:
    """A command in this process, which saves its start: exit code and all that it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["command", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = int(ended.code or 0)
        return code, "".join(capsys.readouterr())

    return call


def start(
    module: str, *arguments: str, cwd: Path | None = None, interruptible: bool = True, **environment: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"bsq_lightning.{module}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **environment},
        # What a shell has put into the background ignores Ctrl-C, and so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL if interruptible else signal.SIG_IGN),
    )


def run(module: str, *arguments: str, cwd: Path | None = None, **environment: str) -> tuple[int, str]:
    process = start(module, *arguments, cwd=cwd, **environment)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output
