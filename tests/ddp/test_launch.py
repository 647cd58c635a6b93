"""Several devices under Hydra: one run, a sweep, a failing job, other launchers, torchrun. Nothing may hang, train on
half of the data, or take other jobs with it."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.cli.run.joining import one_run_folder
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY, start
from tests.ddp.faults import at

ROOT = Path(__file__).parents[2]  # tests.ddp.faults is found from here
#: The same images in a step, by one or by two devices.
SHORT = [*TINY, "stages.float.epochs=1", "stages.bits.epochs=2", "stages.finetune.epochs=0", "data.batch_size=32"]
DDP = [*SHORT, "trainer=ddp_cpu"]


def train(*arguments: str, cwd: Path = ROOT) -> tuple[int, str]:
    """Runs the command in a group of its own; what outlives it is a failure."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=170)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"it hangs: {process.communicate()[0]}") from None
    assert not orphans(process.pid), output
    return process.returncode, output


def orphans(group: int, patience: float = 10) -> bool:
    deadline = time.monotonic() + patience
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    os.killpg(group, signal.SIGKILL)
    return True


def devices(folder: Path) -> int:
    assert RunFolder(folder).state == "done"
    return json.loads((folder / "summary.json").read_text())["devices"]


def steps(folder: Path) -> int:
    return sum(RunFolder(folder).steps().values())


@pytest.mark.slow
def test_one_run_on_two_devices_counts_every_test_image_once(tmp_path: Path) -> None:
    """359 test images are not shared by two without one left over."""
    folder = tmp_path / "run"
    code, output = train("bsq_lightning.train", *DDP, "data.eval_batch_size=37", f"hydra.run.dir={folder}")
    assert code == 0, output
    assert devices(folder) == 2
    assert output.count("stage bits: test accuracy") == 1, "rank 1 speaks too"
    accuracy = RunFolder(folder).summary()["accuracy"]["final"]["test/acc"]
    images = RunFolder(folder).summary()["data"]["test"]
    assert accuracy * images == pytest.approx(round(accuracy * images), abs=1e-3)
    code, output = train("bsq_lightning.evaluate", f"run={folder}")  # on one device
    assert code == 0, output
    found = re.findall(r"test accuracy ([0-9.]+) ", output)
    assert [float(value) for value in found] == pytest.approx([accuracy], abs=1e-6)
    assert not [path for path in folder.rglob("*") if ".tmp" in path.name]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["processes", "basic", "joblib", "submitit_local"])
def test_a_sweep_over_alpha_with_two_devices_each(launcher: str, tmp_path: Path) -> None:
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, output = train(
        "bsq_lightning.train", "-m", *DDP, "reg.alpha=1,2", f"hydra/launcher={launcher}",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}",
        *(["hydra.launcher.n_jobs=1"] if launcher == "joblib" else []),
    )  # fmt: skip
    assert code == 0, output
    folders = [tmp_path / "0", tmp_path / "1"]
    assert [devices(folder) for folder in folders] == [2, 2]
    runs = {path.parent for path in tmp_path.rglob("metrics.csv")} - {*(tmp_path / "float").glob("*")}
    assert runs == set(folders), "a rank has a run folder of its own"


@pytest.mark.slow
@pytest.mark.parametrize("order", ["1,2", "2,1"])
def test_a_sweep_over_the_number_of_devices_in_one_process(order: str, tmp_path: Path) -> None:
    """What a job leaves behind in the process, a group or a variable, would halve or break the next."""
    code, output = train(
        "bsq_lightning.train", "-m", *DDP, "hydra/launcher=basic", f"trainer.devices={order}",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${trainer.devices}",
    )  # fmt: skip
    assert code == 0, output
    assert (devices(tmp_path / "1"), devices(tmp_path / "2")) == (1, 2)
    assert steps(tmp_path / "1") == 2 * steps(tmp_path / "2"), "a device did not see its half of the images"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_failing_rank_ends_its_run_and_no_other(rank: int, tmp_path: Path) -> None:
    fault = at("fail", epoch=0, rank=rank)
    once = tmp_path / "once"
    code, output = train(
        "bsq_lightning.train", "-m", *DDP, *fault, f"+callbacks.fault.once={once}", "reg.alpha=1,2",
        f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=${hydra.job.num}",
    )  # fmt: skip
    assert code == 1, output
    assert RunFolder(tmp_path / "0").state == "failed" and RunFolder(tmp_path / "1").state == "done"
    error = RunFolder(tmp_path / "0").error()
    assert error is not None and error["message"] == "a fault on purpose", error
    assert f"rank {rank} of 2 failed: a fault on purpose" in (tmp_path / "0" / "output.log").read_text()


@pytest.mark.slow
def test_torchrun_gives_all_ranks_one_run_folder(tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bsq_lightning.train"]
    code, output = train(*torchrun, *DDP, cwd=tmp_path)
    assert code == 0, output
    runs = {path.parent for path in tmp_path.rglob("config.yaml") if path.parent.name != ".hydra"}
    assert len(runs) == 1 == len(list(tmp_path.rglob(".hydra"))), runs
    assert devices(runs.pop()) == 2


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["-m", "reg.alpha=1,2"], "start the sweep by itself"), (["trainer.devices=3"], "2 processes were started")],
)
def test_torchrun_refuses_what_every_rank_would_repeat_or_miss(arguments: list[str], said: str, tmp_path: Path) -> None:
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "bsq_lightning.train"]
    where = [] if "-m" in arguments else [f"hydra.run.dir={tmp_path / 'run'}"]
    code, output = train(*torchrun, *DDP, *arguments, *where)
    assert code != 0 and said in output, output


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["terminate", "user1", "user2"])
def test_a_signal_to_one_rank_stops_both_within_the_epoch_and_nothing_is_lost(fault: str, tmp_path: Path) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    often = [*DDP, "callbacks.preemption.every_n_steps=1", "stages.bits.epochs=3"]
    code, output = train("bsq_lightning.train", *often, f"hydra.run.dir={whole}")
    assert code == 0, output
    number = {"terminate": signal.SIGTERM, "user1": signal.SIGUSR1, "user2": signal.SIGUSR2}[fault]
    once = [*at(fault, rank=1, batch=0), f"+callbacks.fault.once={tmp_path / 'once'}"]
    code, output = train("bsq_lightning.train", *often, *once, f"hydra.run.dir={stopped}")
    assert code == 128 + number, output
    assert RunFolder(stopped).state == "unfinished" and "saved after batch" in output
    within = load_checkpoint(stopped / "checkpoints" / "last.ckpt")["within_epoch"]["batches"]
    assert 0 < within < 4
    code, output = train("bsq_lightning.train", f"resume={stopped}", "trust=[tests]")
    assert code == 0 and f"continues after batch {within} of epoch 2" in output, output
    same_end(whole, stopped)


def same_end(whole: Path, other: Path) -> None:
    from tests.cli.test_resume import same_run

    same_run(whole, other)


@pytest.mark.slow
def test_a_signal_to_the_command_reaches_all_ranks(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    endless = [*DDP, "callbacks.preemption.every_n_steps=1", "stages.bits.epochs=500"]
    process = start("train", *endless, f"hydra.run.dir={folder}", cwd=ROOT)
    wait_for_row(folder, process)
    process.send_signal(signal.SIGUSR1)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGUSR1, output
    assert RunFolder(folder).state == "unfinished"
    load_checkpoint(folder / "checkpoints" / "last.ckpt")


@pytest.mark.slow
def test_ranks_do_not_outlive_the_command(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("train", *DDP, "stages.bits.epochs=500", f"hydra.run.dir={folder}", cwd=ROOT)
    wait_for_row(folder, process)
    process.kill()
    deadline = time.monotonic() + 60
    while RunFolder(folder).state == "running":
        assert time.monotonic() < deadline, "ranks train on, unseen"
        time.sleep(0.2)
    load_checkpoint(folder / "checkpoints" / "last.ckpt")


def wait_for_row(folder: Path, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 90
    while "\nbits,0," not in (path.read_text() if (path := folder / "metrics.csv").exists() else ""):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.05)


def test_srun_names_the_run_folder_by_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SLURM_NTASKS", "2"), ("SLURM_PROCID", "1"), ("SLURM_JOB_ID", "77")):
        monkeypatch.setenv(name, value)
    assert one_run_folder(["seed=1"]) == ["seed=1", "hydra.run.dir=outputs/slurm-77", "hydra.output_subdir=null"]
    assert one_run_folder(["hydra.run.dir=a"]) == ["hydra.run.dir=a", "hydra.output_subdir=null"]
    monkeypatch.setenv("SLURM_PROCID", "0")
    assert one_run_folder(["hydra.run.dir=a"]) == ["hydra.run.dir=a"]
    with pytest.raises(ValueError, match="whole sweep"):
        one_run_folder(["-m", "seed=1,2"])
    monkeypatch.setenv("SLURM_JOB_NAME", "bash")
    assert one_run_folder(["seed=1"]) == ["seed=1"]
