"""Faults of machines and people. Each ends in a clear error or goes on, and always leaves a checkpoint that loads."""

import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY
from tests.cli.test_resume import same_run
from tests.ddp.faults import at
from tests.ddp.test_launch import DDP, train

pytestmark = pytest.mark.slow
#: Two adjustments in the stage with planes, no fine-tuning.
ALONE = [*TINY, "stages.finetune.epochs=1"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("faults") / "whole"
    code, output = train("bsq_lightning.train", *ALONE, f"hydra.run.dir={folder}")
    assert code == 0, output
    return folder


def loads(folder: Path) -> None:
    load_checkpoint(folder / "checkpoints" / "last.ckpt")
    assert RunFolder(folder).state in ("failed", "unfinished")


def goes_on(folder: Path, *arguments: str) -> str:
    code, output = train("bsq_lightning.train", f"resume={folder}", "trust=[tests]", *arguments)
    assert code == 0, output
    return output


@pytest.mark.parametrize("rank", [0, 1])
def test_sigkill_of_one_rank(rank: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fault = [*at("kill", epoch=1, rank=rank), f"+callbacks.fault.once={tmp_path / 'once'}"]
    code, output = train("bsq_lightning.train", *DDP, *fault, f"hydra.run.dir={folder}")
    assert code == 1 and f"rank {rank} of 2 was killed by SIGKILL" in output, output
    assert f"resume={folder}" in output
    loads(folder)
    goes_on(folder)


def test_sigkill_during_checkpoint_writing(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    writing = ["+callbacks.fault._target_=tests.ddp.faults.KilledWhileWriting", "+callbacks.fault.stage=bits"]
    code, _ = train("bsq_lightning.train", *ALONE, *writing, f"hydra.run.dir={folder}")
    assert code == -signal.SIGKILL
    assert list((folder / "checkpoints").glob(".last.ckpt.*.tmp")), "it was not killed in the middle of writing"
    loads(folder)
    assert RunFolder(folder).steps() == {"float": 4, "bits": 8}
    _without_fault(folder)
    same_run(undisturbed, folder)
    assert not list((folder / "checkpoints").glob(".*.tmp"))


def _without_fault(folder: Path) -> None:
    """A run keeps its config, so what this test put into it is taken out of the file."""
    import yaml

    path = folder / "config.yaml"
    content = yaml.safe_load(path.read_text())
    del content["callbacks"]["fault"]
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    goes_on(folder)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)], capture_output=True)
    if made.returncode:
        pytest.skip(f"no small file system can be mounted here ({made.stderr.decode().strip()})")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_full_disk_while_saving(undisturbed: Path, small_disk: Path) -> None:
    """Float checkpoints of the small network take 0.6 MB; those of planes and momentum do not fit in."""
    folder = small_disk / "run"
    code, output = train("bsq_lightning.train", *ALONE, f"hydra.run.dir={folder}")
    assert code == 1 and "No space left on device" in output and "last.ckpt" in output, output
    assert "Traceback" not in output
    loads(folder)
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    goes_on(folder)
    same_run(undisturbed, folder)


@pytest.mark.parametrize("share", [0.0, 0.6, 0.999])
def test_a_checkpoint_half_written_by_an_earlier_crash(share: float, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fault = [*at("kill", epoch=2), f"+callbacks.fault.once={tmp_path / 'once'}"]
    code, _ = train("bsq_lightning.train", *ALONE, *fault, f"hydra.run.dir={folder}")
    assert code == -signal.SIGKILL
    last = folder / "checkpoints" / "last.ckpt"
    content = last.read_bytes()
    last.write_bytes(content[: int(share * len(content))])
    output = goes_on(folder)
    assert "Going on from the checkpoint before it" in output and "continues at epoch 2" in output
    same_run(undisturbed, folder)


def test_a_damaged_checkpoint_with_nothing_before_it(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    fault = at("kill", stage="float", epoch=0, batch=2)
    code, _ = train("bsq_lightning.train", *ALONE, *fault, "stages.float.epochs=2", f"hydra.run.dir={folder}")
    assert code == -signal.SIGKILL
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"PK\x03\x04")
    code, output = train("bsq_lightning.train", f"resume={folder}", "trust=[tests]")
    assert code == 1 and "cannot be read as a checkpoint: it is damaged" in output, output


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_sees_other_data(rank: int, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    other = ["data._target_=tests.ddp.faults.OtherDigits", f"+data.rank={rank}"]
    code, output = train("bsq_lightning.train", *DDP, *other, f"hydra.run.dir={folder}")
    assert code == 1 and "ranks disagree: the images or their split of rank 1 differ" in output, output
    assert "same data.root" in output
    assert RunFolder(folder).steps() == {}, "it trained before it looked"


def test_a_rank_whose_planes_drift(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = train("bsq_lightning.train", *DDP, *at("drift", epoch=1, rank=1), f"hydra.run.dir={folder}")
    assert code == 1 and "ranks disagree: " in output and "of rank 1 differ from those of rank 0" in output, output
    loads(folder)
    assert RunFolder(folder).steps()["bits"] == 4, "an epoch of two networks was kept"


def test_a_clock_that_jumps_back_by_a_day(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = train("bsq_lightning.train", *ALONE, *at("jump", epoch=1), f"hydra.run.dir={folder}")
    assert code == 0, output
    same_run(undisturbed, folder)
    assert all(float(row["seconds"]) >= 0 for row in RunFolder(folder).metrics())


def test_a_data_folder_that_vanishes_in_the_middle_of_an_epoch(tmp_path: Path) -> None:
    from PIL import Image

    data, folder = tmp_path / "data", tmp_path / "run"
    for part in ("train", "val"):
        for label in range(2):
            (data / part / str(label)).mkdir(parents=True)
            for i in range(24):
                Image.new("RGB", (16, 16), (90 * label + i, 3 * i, 7)).save(data / part / str(label) / f"{i}.png")
    images = [
        "data=image_folder", f"data.root={data}", "data.image_size=16", "data.resize=16", "data.val_split=8",
        "data.num_workers=0", "data.batch_size=8", "reg.alpha=20", "logger=none", "~data.limit_train",
    ]  # fmt: skip
    arguments = [a for a in ALONE if not a.startswith("data.")] + [a for a in images if not a.startswith("~")]
    fault = [*at("vanish", epoch=1, batch=1, path=data), f"+callbacks.fault.once={tmp_path / 'once'}"]
    code, output = train("bsq_lightning.train", *arguments, *fault, f"hydra.run.dir={folder}")
    assert code == 1 and str(data / "train") in output and ".png" in output, output
    assert "Traceback" not in output
    loads(folder)
    shutil.move(f"{data}.away", data)
    goes_on(folder)


def test_the_folder_of_a_run_in_progress_is_not_taken(tmp_path: Path) -> None:
    """The lock belongs to a rank, not to the command that started it."""
    from tests.cli.commands import start
    from tests.ddp.test_launch import ROOT, wait_for_row

    folder = tmp_path / "run"
    endless = [*DDP, "stages.bits.epochs=500"]
    process = start("train", *endless, f"hydra.run.dir={folder}", cwd=ROOT)
    wait_for_row(folder, process)
    code, output = train("bsq_lightning.train", *endless, f"hydra.run.dir={folder}")
    assert code == 1 and "another process is training in this folder" in output, output
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=90)
    loads(folder)
