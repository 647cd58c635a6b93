"""A disk that is full, or becomes full: one message, nothing half written, and the run goes on once there is room."""

import logging
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bsq_lightning.cli.log_file import LogFile
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.train import main
from tests.cli.commands import TINY, in_process, run

Disk = Callable[[str], Path]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of so many bytes ("4k"); asked again, the same one with another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def sized(size: str) -> Path:
        options = f"{'remount,' if folder.is_mount() else ''}size={size}"
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("a small disk cannot be mounted here (it takes root on Linux)")
        return folder

    yield sized
    if folder.is_mount():
        subprocess.run(["umount", "--lazy", folder], check=True)  # a log of this process is open


@pytest.mark.parametrize("size", ["4k", "16k", "40k"])
def test_a_run_does_not_begin_on_it(
    size: str, disk: Disk, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Before Hydra has written its files, behind them, and where the first of ours fit."""
    folder = disk(size) / "run"
    code, output = in_process(main, monkeypatch, capfd)(*TINY, f"hydra.run.dir={folder}")
    assert code == 1 and "Traceback" not in output, output
    assert "No space left on device" in output and "hydra.run.dir=FOLDER" in output, output
    assert not list(folder.rglob("*.tmp")) and not RunFolder(folder).config.exists()


def test_a_log_that_cannot_be_written_is_said_once(disk: Disk, capfd: pytest.CaptureFixture[str]) -> None:
    folder = disk("8k")
    (folder / "full").write_bytes(bytes(8192))
    log = LogFile(str(folder / "train.log"))
    for _ in range(3):
        log.handle(logging.LogRecord("bsq", logging.INFO, "", 0, "said", None, None))
    (folder / "full").unlink()
    log.close()
    assert capfd.readouterr().err == f"{folder / 'train.log'} cannot be written (No space left on device)\n"


@pytest.mark.slow
def test_a_run_that_fills_it_goes_on_when_there_is_room(disk: Disk) -> None:
    folder = disk("3m") / "run"
    code, output = run("train", *TINY, f"hydra.run.dir={folder}")
    assert code == 1 and "Traceback" not in output, output
    assert (
        "No space left on device" in output and f"go on with: python -m bsq_lightning.train resume={folder}" in output
    )
    assert RunFolder(folder).last.exists() and RunFolder(folder).state == "failed"
    disk("64m")
    code, output = run("train", f"resume={folder}")
    assert code == 0 and RunFolder(folder).is_finished, output
