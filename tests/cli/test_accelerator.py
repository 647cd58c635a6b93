"""``accelerator`` as a command: the figures of the model, from nothing but a run's quantized weights."""

from pathlib import Path

import pytest
import torch

from bsq_lightning.accelerator import main
from bsq_lightning.hardware import Array, compare, network_cost
from bsq_lightning.post_training import SWIS, Multipoint, Round
from bsq_lightning.quantized_tensor import Grid, QuantizedState, QuantizedTensor, save_state
from tests.cli.commands import InProcess, in_process


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return in_process(main, monkeypatch, capsys)


def folder_of(folder: Path, tensors: dict[str, QuantizedTensor]) -> QuantizedState:
    state = QuantizedState(tensors, macs={name: tensor.codes.numel() * 64 for name, tensor in tensors.items()})
    (folder / "config.yaml").write_text("model: {}")
    save_state(folder / "quantized.safetensors", state)
    return state


def test_it_prints_what_the_model_says_of_every_kind_of_tensor(tmp_path: Path, command: InProcess) -> None:
    weight = torch.randn(16, 8, 3, 3)
    methods = {"swis": SWIS(2), "plain": Round(5), "points": Multipoint(4, select="all", max_points=2)}
    state = folder_of(tmp_path, {name: method(weight) for name, method in methods.items()})
    code, output = command(f"run={tmp_path}", "array.shifts_per_cycle=2")
    assert code == 0 and "placeholders" in output, output
    array = Array(shifts_per_cycle=2)
    rows = {line.split("│")[1].strip(): [cell.strip() for cell in line.split("│")[1:-1]] for line in output.splitlines()
            if line.startswith("│")}  # fmt: skip
    for name, cost in network_cost(state, array).items():
        assert rows[name][5] == f"{cost.cycles:,}" and rows[name][6] == f"{cost.dram_bits / 8000:.2f}"
    # A sign, two masks and two positions of three bits for each four weights.
    assert rows["swis"][2:5] == ["8", "2.00", "4.50"] and rows["points"][3] == "6.00"
    found = compare(state, array)
    assert rows["bit-serial, all bits"][2] == f"{found['bit_serial']['cycles_ratio']:.2f}"
    assert rows["this network"][2] == rows["this network"][4] == rows["this network"][6] == "1.00"


def test_what_the_array_cannot_run_is_said(tmp_path: Path, command: InProcess) -> None:
    code, output = command(f"run={tmp_path}")
    assert code == 1 and "is not a run folder" in output, output
    codes = torch.zeros(4, 2, dtype=torch.int32)
    folder_of(tmp_path, {"a": QuantizedTensor(codes, torch.tensor(1.0), 2, extra=Grid(torch.tensor([0.0, 1.0])))})
    code, output = command(f"run={tmp_path}")
    assert code == 1 and "codes of a codebook" in output and "Traceback" not in output, output
    folder_of(tmp_path, {"a": SWIS(2, group=4)(torch.randn(8, 8))})
    code, output = command(f"run={tmp_path}", "array.group=8")
    assert code == 1 and "groups of 4" in output, output
    code, output = command(f"run={tmp_path}", "array.rows=0")
    assert code == 1 and "at least one of everything" in output, output
