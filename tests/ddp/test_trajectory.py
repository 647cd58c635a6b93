"""Ranks hold the same network bit for bit, and N ranks at batch B go where one process at batch N B goes."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import METHODS

pytestmark = pytest.mark.slow
IMAGES = 24  # per step, over all ranks


def trajectory(folder: Path, ranks: int, act_precision: int, method: str = "bit_planes") -> list[dict[str, Any]]:
    folder.mkdir()
    module = ["-m", "tests.ddp.trajectory", str(folder), str(IMAGES), str(act_precision), method]
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *torchrun, *module],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


def furthest(a: list[dict[str, torch.Tensor]], b: list[dict[str, torch.Tensor]]) -> float:
    """Largest difference of any element at any step; also that the two have the same steps and shapes."""
    assert len(a) == len(b) > 0
    largest = 0.0
    for one, other in zip(a, b, strict=True):
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
        largest = max(largest, *(float((one[key] - other[key]).abs().max()) for key in one if one[key].numel()))
    return largest


@pytest.mark.parametrize(("ranks", "act_precision"), [(2, 0), (2, 4), (4, 4)])
def test_ranks_train_one_network_the_one_a_single_process_trains(
    ranks: int, act_precision: int, tmp_path: Path
) -> None:
    together = trajectory(tmp_path / "together", ranks, act_precision)
    alone = trajectory(tmp_path / "alone", 1, act_precision)[0]
    bits = {sum(tensor.shape[1] for key, tensor in step.items() if key.endswith("planes")) for step in alone["steps"]}
    assert len(bits) > 2, "fewer than two adjustments changed the precisions: nothing was tried"
    compare(together, alone)
    # 17 images in batches of 5: every one counted once, whatever rank saw it.
    assert together[0]["val"]["val/acc"] == pytest.approx(alone["val"]["val/acc"], abs=1e-6)
    assert together[0]["val"]["val/loss"] == pytest.approx(alone["val"]["val/loss"], rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_ranks_train_one_network_whatever_the_method(method: str, tmp_path: Path) -> None:
    together = trajectory(tmp_path / "together", 2, 4, method)
    alone = trajectory(tmp_path / "alone", 1, 4, method)[0]
    assert method != "msq" or min(alone["schemes"].values()) < 5, "no adjustment dropped a bit: nothing was tried"
    compare(together, alone)


def compare(together: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    for rank in together:
        assert rank["world"] == len(together)
        assert furthest(rank["steps"], together[0]["steps"]) == 0.0
        assert rank["schemes"] == together[0]["schemes"]
        assert all(torch.equal(rank["codes"][name], codes) for name, codes in together[0]["codes"].items())
    difference = furthest(together[0]["steps"], alone["steps"])
    print(f"{len(together)} ranks: largest difference {difference:.1e}")
    assert difference < 1e-9
    assert together[0]["schemes"] == alone["schemes"]
    assert all(torch.equal(together[0]["codes"][name], codes) for name, codes in alone["codes"].items())
