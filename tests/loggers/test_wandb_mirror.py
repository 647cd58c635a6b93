"""W&B shows what the run folder holds; read back from the file of the offline run, without a network."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command_args

from bsq_lightning.callbacks.run_recorder import COLUMNS
from bsq_lightning.scheme import Scheme
from tests.cli.commands import TINY, run, start
from tests.loggers.wandb_file import WandbFile, offline_runs
from tests.loggers.wandb_server import wandb_server

SWEEPS = sorted((Path(__file__).parents[2] / "sweeps" / "wandb").glob("*.yaml"))
X = "trainer/global_step"


@pytest.fixture(scope="module", autouse=True)
def no_key(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A machine where nobody has logged in to W&B."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("WANDB_") or name == "NETRC"]:
            patch.delenv(name)
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("runs") / "mirrored"
    code, output = run("train", *TINY, "logger=[wandb,tensorboard]", f"hydra.run.dir={folder}", BSQ_SWEEP="alphas")
    assert code == 0, output
    return folder, output


@pytest.fixture(scope="module")
def mirror(trained: tuple[Path, str]) -> WandbFile:
    (only,) = offline_runs(trained[0])
    return only


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def axis(metrics: list[dict[str, str]]) -> list[int]:
    """Steps of the rows on one axis over all stages."""
    ends: dict[str, int] = {row["stage"]: int(row["step"]) for row in metrics}
    names = list(ends)
    return [int(row["step"]) - 1 + sum(ends[name] for name in names[: names.index(row["stage"])]) for row in metrics]


def logged(mirror: WandbFile, x: int) -> dict[str, Any]:
    return {key: value for row in mirror.history if row.get(X) == x for key, value in row.items()}


def test_every_column_of_every_epoch(trained: tuple[Path, str], mirror: WandbFile) -> None:
    metrics = rows(trained[0])
    steps = axis(metrics)
    assert len(set(steps)) == len(steps) == 7
    seen = set()
    for x, row in zip(steps, metrics, strict=True):
        shown = logged(mirror, x)
        for column in set(COLUMNS) - {"step"}:
            if not row[column]:
                continue
            seen.add(column)
            expected = row[column] if column == "stage" else pytest.approx(float(row[column]), rel=1e-6)
            assert shown[column] == expected, column
    assert seen == set(COLUMNS) - {"step", "val/top5"}


def test_steps_never_go_back(mirror: WandbFile) -> None:
    steps = [row[X] for row in mirror.history]
    assert steps == sorted(steps)


def test_run_config_and_exit_state(trained: tuple[Path, str], mirror: WandbFile) -> None:
    folder, output = trained
    kept = json.loads((folder / "wandb.json").read_text())
    assert mirror.run.run_id == kept["id"]
    assert (mirror.run.project, mirror.run.run_group, mirror.run.display_name) == (
        "bsq_lightning",
        "alphas",
        "mirrored",
    )
    assert mirror.config["reg"]["alpha"] == 20 and mirror.config["stages"]["bits"]["epochs"] == 4
    assert mirror.exit_code == 0
    assert f"wandb sync {mirror.path.parent}" in output.splitlines()[-1]
    assert "wandb: " not in output, "wandb chatters"


def test_bits_over_time_as_a_table_and_a_picture(trained: tuple[Path, str], mirror: WandbFile) -> None:
    folder = trained[0]
    adjustments = [json.loads(line) for line in (folder / "adjustments.jsonl").read_text().splitlines()]
    last = [row for row in mirror.history if "bits/table" in row][-1]
    table = json.loads((mirror.path.parent / "files" / last["bits/table"]["path"]).read_text())
    assert table["columns"] == ["stage", "epochs", "layer", "weights", "bits"]
    bits = {(row[1], row[2]): row[4] for row in table["data"]}
    for adjustment in adjustments:
        for name, layer in adjustment["layers"].items():
            assert bits[adjustment["epoch"] + 1, name] == layer["to"]
    first = adjustments[0]["layers"].items()
    assert {name: bits[0, name] for name, _ in first} == {name: layer["from"] for name, layer in first}
    assert len(bits) == 3 * len(first)
    picture = mirror.path.parent / "files" / last["bits/heat_map"]["path"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_scheme_is_an_artifact_and_the_summary_is_there(trained: tuple[Path, str], mirror: WandbFile) -> None:
    folder = trained[0]
    final = [artifact for artifact in mirror.artifacts if artifact.type == "scheme"][-1]
    (content,) = final.manifest.contents
    assert "final" in final.aliases and content.path == "scheme.json"
    assert Scheme.load(content.local_path) == Scheme.load(folder / "scheme.json")
    for artifact in mirror.artifacts:
        for content in artifact.manifest.contents:
            assert Path(content.local_path).is_relative_to(folder), "the sync would need the home folder"
    summary = json.loads((folder / "summary.json").read_text())
    for key in ("accuracy", "sizes", "mean_precision", "scheme"):
        assert mirror.summary[key] == summary[key]
    assert mirror.summary["end/test/acc"] == summary["accuracy"]["final"]["test/acc"]


def test_tensorboard_shows_the_same_on_the_same_axis(trained: tuple[Path, str]) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(trained[0] / "tensorboard"))
    events.Reload()
    metrics = rows(trained[0])
    shown = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert shown == [
        (x, pytest.approx(float(row["train/loss"]))) for x, row in zip(axis(metrics), metrics, strict=True)
    ]


def test_a_failed_run_has_failed(tmp_path: Path) -> None:
    bad = ["stages.float.scheduler=null", "stages.float.optimizer.lr=1e30"]
    code, output = run("train", *TINY, *bad, "logger=wandb", f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 1 and "the loss became NaN" in output, output
    (mirror,) = offline_runs(tmp_path / "run")
    assert mirror.exit_code == 1


def test_a_resumed_run_goes_on_under_its_id(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    process = start("train", *TINY, "logger=wandb", f"hydra.run.dir={folder}", BSQ_SWEEP="alphas")
    deadline = time.monotonic() + 200
    while not (folder / "metrics.csv").exists() or "\nbits,0" not in (folder / "metrics.csv").read_text():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = json.loads((folder / "wandb.json").read_text())
    code, output = run("train", f"resume={folder}")
    assert code == 0, output
    killed, after = offline_runs(folder)
    assert killed.path.name == after.path.name == f"run-{kept['id']}.wandb"
    assert killed.exit_code is None and after.exit_code == 0
    assert after.run.run_id == kept["id"] and after.run.run_group == "alphas" and after.run.resume
    # The killed part may have been lost as a whole: wandb writes every 15 seconds. So the new one has it all.
    metrics = rows(folder)
    for x, row in zip(axis(metrics), metrics, strict=True):
        shown = logged(after, x)
        for column in ("train/loss", "val/acc", "mean_precision"):
            assert shown[column] == pytest.approx(float(row[column]))
        assert shown["stage"] == row["stage"]
    assert len([row for row in after.history if "end/test/acc" in row]) == 3
    assert f"wandb sync {after.path.parent}" in output.splitlines()[-1]


def agent_command(path: Path) -> list[str]:
    """What ``wandb agent`` would start for a point of a sweep, by wandb's own function."""
    sweep = yaml.safe_load(path.read_text())
    point = {
        name: {"value": parameter["values"][0] if "values" in parameter else parameter["max"]}
        for name, parameter in sweep["parameters"].items()
    }
    arguments = create_sweep_command_args({"args": point})["args_no_hyphens"]
    words = [
        [sys.executable] if w == "python" else arguments if w == "${args_no_hyphens}" else [w] for w in sweep["command"]
    ]
    return [word for group in words for word in group if word != "${env}"]


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_an_agents_command_composes(path: Path) -> None:
    from tests.test_conf import composed

    python, flag, module, *overrides = agent_command(path)
    assert (flag, module) == ("-m", "bsq_lightning.train")
    composed(*overrides)


@pytest.mark.slow
def test_an_agents_command_runs_under_the_agents_id(tmp_path: Path) -> None:
    *_, first, second = agent_command(SWEEPS[1])
    short = ["stages.bits.epochs=1", "stages.finetune.epochs=1", "data.limit_train=64"]
    code, output = run(
        "train", *TINY, *short, first, second, "logger=wandb", f"hydra.run.dir={tmp_path / 'run'}",
        WANDB_RUN_ID="agents1d", WANDB_SWEEP_ID="sweep123", WANDB_PROJECT="theirs", WANDB_MODE="offline",
    )  # fmt: skip
    assert code == 0, output
    (mirror,) = offline_runs(tmp_path / "run")
    assert (mirror.run.run_id, mirror.run.sweep_id, mirror.run.project) == ("agents1d", "sweep123", "theirs")
    assert "end/val/acc" in {key for row in mirror.history for key in row}
    assert "wandb: " not in output, output


BEGIN = """
import sys
from bsq_lightning.loggers.wandb_mirror import WandbMirror
for folder in sys.argv[1:]:
    mirror = WandbMirror(folder)
    mirror.begin({"seed": 1})
    mirror.log_metrics({"train/loss": 1.5}, 0)
    mirror.close(0)
"""


def begin(*folders: Path, **environment: str) -> str:
    for folder in folders:
        folder.mkdir()
    result = subprocess.run(
        [sys.executable, "-c", BEGIN, *map(str, folders)],
        env={**os.environ, **environment}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return result.stdout + result.stderr


def test_points_of_one_process_are_runs_of_their_own(tmp_path: Path) -> None:
    begin(tmp_path / "a", tmp_path / "b")
    mirrors = [mirror for name in ("a", "b") for mirror in offline_runs(tmp_path / name)]
    assert len(mirrors) == 2 and mirrors[0].run.run_id != mirrors[1].run.run_id
    assert [mirror.run.display_name for mirror in mirrors] == ["a", "b"]


@pytest.mark.parametrize("key", ["a" * 40, pytest.param("short", marks=pytest.mark.slow)])
def test_a_server_that_does_not_answer_and_a_wrong_key_do_not_stop_a_run(key: str, tmp_path: Path) -> None:
    output = begin(tmp_path / "a", WANDB_API_KEY=key, WANDB_BASE_URL="http://127.0.0.1:9", WANDB_INIT_TIMEOUT="2")
    assert "W&B goes offline" in output
    (mirror,) = offline_runs(tmp_path / "a")
    assert mirror.exit_code == 0 and mirror.history


def test_wandb_mode_can_disable(tmp_path: Path) -> None:
    begin(tmp_path / "a", WANDB_MODE="disabled")
    assert not offline_runs(tmp_path / "a") and not (tmp_path / "a" / "wandb.json").exists()


@pytest.mark.slow
def test_online_without_a_key_does_not_ask_for_one(tmp_path: Path) -> None:
    assert "although WANDB_MODE=online" in begin(tmp_path / "b", WANDB_MODE="online")
    assert len(offline_runs(tmp_path / "b")) == 1


def test_wandb_sync_uploads_the_run_as_it_ended(trained: tuple[Path, str], mirror: WandbFile) -> None:
    command = trained[1].splitlines()[-1].split("to upload: wandb ")[1].split()
    with wandb_server() as server:
        subprocess.run(
            [sys.executable, "-m", "wandb", *command],
            env={**os.environ, **server.environment}, check=True, capture_output=True, timeout=300,
        )  # fmt: skip
    assert server.runs[0]["name"] == mirror.run.run_id and server.runs[0]["groupName"] == "alphas"
    losses = [row["train/loss"] for row in server.history if "train/loss" in row]
    assert losses == [pytest.approx(float(row["train/loss"])) for row in rows(trained[0])]
    assert server.exit_code == 0
    (mirror.path.parent / f"{mirror.path.name}.synced").unlink(missing_ok=True)


@pytest.mark.slow
def test_online_where_there_is_a_key(tmp_path: Path) -> None:
    with wandb_server() as server:
        output = begin(tmp_path / "a", **server.environment)
        assert "offline" not in output
    assert [row["train/loss"] for row in server.history] == [1.5] and server.exit_code == 0
    assert not offline_runs(tmp_path / "a")
    assert json.loads((tmp_path / "a" / "wandb.json").read_text())["id"] == server.runs[0]["name"]
