"""SIGKILL at any moment, in any stage: the resumed run ends with the same codes, bit for bit."""

import csv
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.cli.run.resume import resume_arguments
from tests.cli.commands import TINY, run, start


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    code, output = run("train", *TINY, f"hydra.run.dir={folder}")
    assert code == 0, output
    return folder


def same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key], key


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return [{k: v for k, v in row.items() if k != "seconds"} for row in csv.DictReader(file)]


def same_run(whole: Path, other: Path) -> None:
    a, b = (load_checkpoint(folder / "checkpoints" / "last.ckpt") for folder in (whole, other))
    same_state(a["state_dict"], b["state_dict"])
    assert rows(whole) == rows(other)
    assert (whole / "scheme.json").read_text() == (other / "scheme.json").read_text()
    assert (whole / "adjustments.jsonl").read_text() == (other / "adjustments.jsonl").read_text()
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (whole, other)]
    for key in ("accuracy", "scheme", "sizes"):
        assert summaries[0][key] == summaries[1][key]


def kill_when(folder: Path, stage: str, epoch: int, *arguments: str) -> bool:
    """Starts (or resumes) a run and kills it once metrics show the epoch; False if it ended before."""
    process = start("train", *arguments)
    deadline = time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        path = folder / "metrics.csv"
        if path.exists() and f"\n{stage},{epoch}," in path.read_text():
            process.send_signal(signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.01)
    assert time.monotonic() < deadline, "the run hangs"
    return False


def test_kill_and_resume_in_every_stage(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    assert kill_when(folder, "float", 0, *TINY, f"hydra.run.dir={folder}")
    for stage, epoch in (("bits", 0), ("bits", 1), ("bits", 3), ("finetune", 0)):  # 1 and 3: at adjustments
        kill_when(folder, stage, epoch, f"resume={folder}")
    code, output = run("train", f"resume={folder}")
    assert code == 0, output
    precisions = [row["mean_precision"] for row in rows(folder) if row["stage"] == "bits"]
    assert len(set(precisions)) > 1, "no adjustment removed a bit, so resume across one was not tried"
    same_run(undisturbed, folder)


def test_evaluate_gives_the_summarys_accuracy_to_the_last_digit(undisturbed: Path) -> None:
    code, output = run("evaluate", f"run={undisturbed}")
    assert code == 0, output
    accuracy = json.loads((undisturbed / "summary.json").read_text())["accuracy"]["final"]["test/acc"]
    assert f"test accuracy {accuracy!r}" in output


def test_run_folder_is_complete(undisturbed: Path) -> None:
    names = {str(path.relative_to(undisturbed)) for path in undisturbed.rglob("*") if path.is_file()}
    assert {
        ".hydra/config.yaml", "config.yaml", "checkpoints/last.ckpt", "checkpoints/float.ckpt", "checkpoints/bits.ckpt",
        "scheme.json", "metrics.csv", "adjustments.jsonl", "summary.json", "stages.json",
    } <= names  # fmt: skip
    assert not [name for name in names if ".tmp" in name]
    for line in (undisturbed / "adjustments.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert row["largest_relative_change"] <= 1e-6
        assert row["acc_after"] == pytest.approx(row["acc_before"], abs=0.02)
    scheme = json.loads((undisturbed / "scheme.json").read_text())
    checkpoint = load_checkpoint(undisturbed / "checkpoints" / "last.ckpt")
    bits = {
        key.split(".")[2].replace("/", "."): value
        for key, value in checkpoint["state_dict"].items()
        if key.endswith("_extra_state")
    }
    assert {row["name"]: row["precision"] for row in scheme["layers"]} == bits


def test_a_finished_run_resumes_to_itself(undisturbed: Path) -> None:
    before = (undisturbed / "metrics.csv").read_text()
    code, output = run("train", f"resume={undisturbed}")
    assert code == 0, output
    assert (undisturbed / "metrics.csv").read_text() == before


def test_resume_refuses_what_would_make_it_another_run(undisturbed: Path) -> None:
    code, output = run("train", f"resume={undisturbed}", "reg.alpha=1", "seed=7")
    assert code == 1
    assert "reg.alpha=1 (the folder has 20)" in output and "seed=7 (the folder has 1)" in output


@pytest.mark.parametrize("argument", ["~callbacks.precision_adjustment", "hydra.run.dir=elsewhere", "-m", "seed=2"])
def test_resume_arguments_that_change_the_run_are_refused(argument: str, undisturbed: Path) -> None:
    with pytest.raises(ValueError, match="a resumed run keeps its config"):
        resume_arguments([f"resume={undisturbed}", argument])


def test_a_logger_can_be_added_on_resume(undisturbed: Path) -> None:
    code, output = run("train", f"resume={undisturbed}", "logger=none", "trainer.enable_progress_bar=false")
    assert code == 0, output


def test_another_run_in_the_same_folder_is_refused(undisturbed: Path) -> None:
    before = (undisturbed / "config.yaml").read_text()
    code, output = run("train", *TINY, f"hydra.run.dir={undisturbed}", "seed=2")
    assert code == 1 and "seed: 1 there, 2 now" in output, output
    assert (undisturbed / "config.yaml").read_text() == before


def test_resume_of_no_run_folder(tmp_path: Path) -> None:
    code, output = run("train", f"resume={tmp_path}")
    assert code == 1 and "is not a run folder" in output
