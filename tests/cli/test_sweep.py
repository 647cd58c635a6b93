"""A real sweep: float stages shared, points skipped, resumed, failed, refused; and a real budget search."""

import json
import os
import re
import shlex
import signal
import time
from pathlib import Path

import pytest

from bsq_lightning.cli.sweep.status import point_states
from bsq_lightning.run_folder import RunFolder, SweepFolder
from tests.cli.commands import TINY, run, start
from tests.cli.test_resume import same_run

SHORT = [*[o for o in TINY if not o.startswith("reg.alpha")], "stages.bits.epochs=2", "stages.finetune.epochs=1",
         "stages.bits.adjust_every_n_epochs=1", "hydra.launcher.slots=2"]  # fmt: skip
# The last rate makes the loss infinite at once.
RATES = "stages.bits.optimizer.lr=0.1,0.05,1e30"


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    folder = tmp_path_factory.mktemp("sweep") / "rates"
    code, output = run("train", "-m", *SHORT, "reg.alpha=20", RATES, f"hydra.sweep.dir={folder}")
    return folder, code, output


def test_a_point_that_fails_is_said_at_once_and_stops_no_other(swept: tuple[Path, int, str]) -> None:
    folder, code, output = swept
    assert code == 1, output
    assert point_states(SweepFolder(folder)) == {
        "stages.bits.optimizer.lr=0.1": "done",
        "stages.bits.optimizer.lr=0.05": "done",
        "stages.bits.optimizer.lr=1e+30": "failed",
    }
    error = RunFolder(folder / "stages.bits.optimizer.lr=1e+30").error()
    assert error is not None and "NaN or infinite" in error["message"] and "Traceback" in error["traceback"]
    assert "lr=1e+30 FAILED after" in output and "NaN or infinite" in output
    assert "Traceback" not in output


def test_the_float_stage_is_trained_once(swept: tuple[Path, int, str]) -> None:
    folder, _, output = swept
    floats = list((folder / "float").iterdir())
    assert len(floats) == 1 and "1 float stages shared by 3 points" in output
    assert "float" in RunFolder(floats[0]).results()
    for name in ("0.1", "0.05"):
        log = (folder / f"stages.bits.optimizer.lr={name}" / "train.log").read_text()
        assert "the float stage is that of" in log and "stage float starts" not in log


@pytest.mark.slow
def test_a_point_equals_the_run_by_itself_bit_for_bit(swept: tuple[Path, int, str], tmp_path: Path) -> None:
    folder = swept[0]
    threads = str(max(1, len(os.sched_getaffinity(0)) // 2))
    alone = tmp_path / "alone"
    own = [*SHORT, "reg.alpha=20", "stages.bits.optimizer.lr=0.05", f"hydra.run.dir={alone}"]
    code, output = run("train", *own, OMP_NUM_THREADS=threads)
    assert code == 0, output
    same_run(alone, folder / "stages.bits.optimizer.lr=0.05")


@pytest.mark.slow
def test_started_again_it_repeats_nothing_that_is_done_and_resumes_the_rest(swept: tuple[Path, int, str]) -> None:
    folder = swept[0]
    done = folder / "stages.bits.optimizer.lr=0.05"
    before = (done / "summary.json").read_bytes(), (done / "output.log").read_bytes()
    command = ["-m", *SHORT, "reg.alpha=20", RATES.replace("1e30", "0.02"), f"hydra.sweep.dir={folder}"]
    process = start("train", *command)
    slow = folder / "stages.bits.optimizer.lr=0.02"
    deadline = time.monotonic() + 120
    while "\nbits,0," not in ((slow / "metrics.csv").read_text() if (slow / "metrics.csv").exists() else ""):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert point_states(SweepFolder(folder))[slow.name] == "unfinished"
    code, output = run("train", *command)
    assert code == 0, output
    assert "3 points, 1 to run" in output
    # Within an epoch or between two, wherever the signal found it.
    assert re.search("stage bits continues (at epoch|after batch)", (slow / "train.log").read_text())
    assert ((done / "summary.json").read_bytes(), (done / "output.log").read_bytes()) == before


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reg.alpha=20,-1"], "reg.alpha=-1"),
        pytest.param(["reg.alpha=20", "quant.precision=8,99"], "precision", marks=pytest.mark.slow),
        pytest.param(
            ["reg.alpha=20", "stages.bits.adjust_every_n_epochs=1,0"],
            "adjust_every_n_epochs must be",
            marks=pytest.mark.slow,
        ),
        pytest.param(["reg.alpha=20", "data.batch_size=64,0"], "batch_size", marks=pytest.mark.slow),
    ],
)
def test_a_bad_point_is_found_before_the_first_one_starts(tmp_path: Path, overrides: list[str], said: str) -> None:
    code, output = run("train", "-m", *SHORT, *overrides, f"hydra.sweep.dir={tmp_path / 's'}")
    assert code == 1
    assert said in output and "No point was started" in output and "Traceback" not in output
    assert not SweepFolder(tmp_path / "s").runs()


@pytest.mark.slow
def test_a_folder_with_other_runs_is_refused(swept: tuple[Path, int, str]) -> None:
    code, output = run("train", "-m", *SHORT, "reg.alpha=21", RATES, f"hydra.sweep.dir={swept[0]}")
    assert code == 1
    assert "reg.alpha: 20 there, 21 now" in output


def test_status_counts_what_is_there_and_what_is_not(swept: tuple[Path, int, str], tmp_path: Path) -> None:
    sweep = SweepFolder(tmp_path)
    sweep.add_points({"a": ["seed=1"], "b": ["seed=2"], "c": ["seed=3"], "d": ["seed=4"]})
    for name, files in {"b": {}, "c": {"error.json": '{"type": "E", "message": "oh no"}'}, "d": {}}.items():
        (tmp_path / name).mkdir()
        for file, text in ({"config.yaml": "seed: 1\n"} | files).items():
            (tmp_path / name / file).write_text(text)
    (tmp_path / "b" / "metrics.csv").write_text(
        "stage,epoch,val/acc,mean_precision,compression_paper\nbits,0,0.5,4,8\nbits,1,0."
    )
    with RunFolder(tmp_path / "d").running():
        code, output = run("sweep", "status", str(tmp_path))
    assert code == 1  # a point has failed
    assert "1 running, 1 failed, 1 unfinished, 1 missing" in output and "oh no" in output and "bits, epoch 1" in output
    for wrong in (tmp_path / "absent", tmp_path / "a"):
        wrong.mkdir(exist_ok=wrong.name == "a") if wrong.name == "a" else None
        code, output = run("sweep", "status", str(wrong))
        assert code == 1 and str(wrong) in output and "Traceback" not in output


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path).running():
        code, output = run("train", *SHORT, "reg.alpha=20", f"hydra.run.dir={tmp_path}")
    assert code == 75 and "another process is training in this folder" in output


def test_a_float_stage_of_another_network_is_refused(swept: tuple[Path, int, str], tmp_path: Path) -> None:
    shared = next((swept[0] / "float").iterdir())
    other = [*SHORT, "reg.alpha=20", f"float_stage={shared}", f"hydra.run.dir={tmp_path}"]
    code, output = run("train", *[o for o in other if o != "+model.depth=8"], "+model.depth=14")
    assert code == 1
    assert "model.depth: 8 there, 14 now" in output


@pytest.mark.slow
@pytest.mark.parametrize("whom", ["search", "its training"])
def test_a_search_ends_inside_the_budget_and_goes_on_after_a_kill(tmp_path: Path, whom: str) -> None:
    command = ["target.kilobytes=60", *SHORT, "reg.alpha=10", "search.max_runs=4", "search.tolerance=0.5",
               "stages.float.epochs=6", "stages.finetune.epochs=4", f"hydra.run.dir={tmp_path}"]  # fmt: skip
    process = start("search", *command)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("alpha=*/adjustments.jsonl")):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    os.kill(process.pid if whom == "search" else int(children.read_text().split()[-1]), signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == (128 + signal.SIGTERM if whom == "search" else 75), output
    again = shlex.join(["python", "-m", "bsq_lightning.search", *command])
    assert f"go on with: {again}" in output.replace("Go on", "go on")
    record = tmp_path / "search.json"
    assert not record.exists() or not any(trial["failed"] for trial in json.loads(record.read_text())["trials"])
    code, output = run("search", *command)
    assert code == 0, output
    winner = RunFolder(tmp_path / f"alpha={json.loads(record.read_text())['winner']:g}")
    assert winner.summary()["sizes"]["model"]["bits"] / 8000 <= 60
    assert "largest network inside 60 kB" in output and "delivered: alpha=" in output


OWN_NETWORK = """
from torch import Tensor, nn


class Five(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3 = (nn.Conv2d(*c, 3, padding=1) for c in ((3, 16), (16, 32), (32, 64)))
        self.fc1, self.fc2 = nn.Linear(256, 256), nn.Linear(256, num_classes)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for conv in (self.conv1, self.conv2, self.conv3):
            x = self.pool(self.relu(conv(x)))
        return self.fc2(self.relu(self.fc1(x.flatten(1))))
"""


@pytest.mark.slow
def test_a_search_delivers_no_broken_network(tmp_path: Path) -> None:
    """A network of one's own without shortcuts, under a penalty that takes whole layers: far inside the budget, and its
    output no longer depends on the image."""
    (tmp_path / "five.py").write_text(OWN_NETWORK)
    code, output = run(
        "search", "target.kilobytes=60", "model._target_=five.Five", "~model.shortcut", "model.shortcuts=[]",
        "model.float_activations=[]", "data=digits", "data.limit_train=256", "data.batch_size=32", "stages=quickstart",
        "stages.float.epochs=2", "stages.float.optimizer.lr=0.02", "stages.bits.epochs=4", "reg.alpha=60",
        "stages.bits.adjust_every_n_epochs=2", "stages.finetune.epochs=1", "search.max_runs=1", "logger=none",
        f"hydra.run.dir={tmp_path / 'search'}", PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}",
    )  # fmt: skip
    assert code == 1, output
    assert "dead path" in output and "as a network that works" in output and "Traceback" not in output
    assert "winner" not in json.loads((tmp_path / "search" / "search.json").read_text())


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([], "give one target"),
        pytest.param(["target.kilobytes=1"], "out of reach", marks=pytest.mark.slow),
        pytest.param(["target.kilobytes=60", "quant=uniform"], "needs a stage that finds bits", marks=pytest.mark.slow),
        pytest.param(["target.kilobytes=60", "reg.alpha=0"], "must be positive", marks=pytest.mark.slow),
    ],
)
def test_an_impossible_search_is_refused_before_training(tmp_path: Path, overrides: list[str], said: str) -> None:
    arguments = [o for o in SHORT if "stages.bits" not in o or "quant=uniform" not in overrides]
    code, output = run("search", *arguments, *overrides, f"hydra.run.dir={tmp_path}")
    assert code == 1 and said in output and "Traceback" not in output
    assert not list(tmp_path.glob("alpha=*"))
