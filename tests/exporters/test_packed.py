"""Packed files: the same logits in a process that knows nothing of training, sizes that add up, hostile content."""

import copy
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from bsq_lightning.exporters import export_packed, hook_activations_, load, read_packed, simulated, verify
from bsq_lightning.exporters.packed_file import checksum
from bsq_lightning.models import resnet20
from bsq_lightning.quantized_tensor import (
    Filters,
    Grid,
    Planes,
    Points,
    QuantizedActivation,
    QuantizedState,
    QuantizedTensor,
    Shifts,
)
from bsq_lightning.quantizers import FilterQuantizer
from tests.exporters.pairs import deep, pair, shaken, tiny
from tests.helpers import TinyNet

FRESH = """
import sys
import torch
from bsq_lightning.exporters import load
from bsq_lightning.models import resnet20

x, expected = torch.load(sys.argv[2], weights_only=True)
net = load(sys.argv[1], resnet20())
with torch.no_grad():
    assert torch.equal(net(x), expected)
print(*sorted(name for name in sys.modules if name.split(".")[0] in
    ("lightning", "pytorch_lightning", "hydra", "omegaconf", "wandb", "onnx", "onnxruntime", "bsq_lightning")))
"""


def test_a_fresh_process_classifies_without_lightning_and_hydra(tmp_path: Path) -> None:
    net, state, x = deep()
    export_packed(tmp_path / "net.safetensors", net, state)
    with torch.no_grad():
        torch.save((x, simulated(net, state)(x)), tmp_path / "expected.pt")
    arguments = [sys.executable, "-c", FRESH, str(tmp_path / "net.safetensors"), str(tmp_path / "expected.pt")]
    result = subprocess.run(arguments, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    imported = {name.split(".")[0] for name in result.stdout.split()}
    assert imported == {"bsq_lightning"}


@pytest.mark.parametrize("bits", range(17))
def test_every_width_comes_back(bits: int, tmp_path: Path) -> None:
    net, state, x = tiny(bits, act_bits=max(1, bits))
    path = export_packed(tmp_path / "file", net, state).path
    back = read_packed(path).state
    for name, tensor in state.tensors.items():
        found = back.tensors[name]
        assert torch.equal(found.codes, tensor.codes) and torch.equal(found.step, tensor.step)
        assert found.precision == bits and found.sign == tensor.sign
    assert back.activations == state.activations and back.scheme() == state.scheme()
    with torch.no_grad():
        assert torch.equal(load(path, TinyNet())(x), simulated(net, state)(x))


def test_the_parts_are_the_file_and_the_model_is_the_claim(tmp_path: Path) -> None:
    for place, (net, state, _) in enumerate((deep(), pair(resnet20(), lambda _: 3, 0, torch.randn(1, 3, 8, 8)))):
        exported = export_packed(tmp_path / str(place), net, state)
        parts = read_packed(exported.path).parts
        assert parts == exported.report and sum(parts.values()) == exported.size
        model = parts["codes"] + parts["steps"] + parts["float_parameters"]
        claimed = state.scheme().bits("model") / 8
        assert abs(model - claimed) <= 0.01 * claimed
        assert parts["header"] < 8000
        assert parts["buffers"] == sum(4 * b.numel() for b in net.buffers() if b.dtype == torch.float32)


def test_nothing_is_stored_for_a_layer_of_no_bits(tmp_path: Path) -> None:
    net, state, _ = tiny(0)
    assert read_packed(export_packed(tmp_path / "file", net, state).path).parts["codes"] == 0


def test_a_sign_inside_takes_no_bit_more(tmp_path: Path) -> None:
    codes = torch.randint(-4, 4, (4, 3, 3, 3), dtype=torch.int32)
    net = TinyNet()
    state = QuantizedState({"conv1": QuantizedTensor(codes, torch.tensor(0.5), 3, "inside")})
    with torch.no_grad():
        net.conv1.weight.copy_(state.tensors["conv1"].dequantize())
    path = export_packed(tmp_path / "file", net, state).path
    assert read_packed(path).parts["codes"] == -(-108 * 3 // 8) == verify_codes(path, codes)


def verify_codes(path: Path, codes: torch.Tensor) -> int:
    tensor = read_packed(path).state.tensors["conv1"]
    assert torch.equal(tensor.codes, codes)
    return -(-tensor.storage_bits() // 8)


def methods() -> dict[str, tuple[QuantizedTensor, str | None]]:
    """A tensor of every method for a linear layer of 5 x 6, and what is said of how it is stored."""
    codes = torch.randint(-3, 4, (5, 6), dtype=torch.int32)
    step = torch.tensor(0.5)
    points = Points(codes[None], torch.full((1, 5, 1), 0.1))
    bits = torch.tensor([2, 2, 0, 2, 2])
    return {
        "points": (QuantizedTensor(codes, step, 2, extra=points), "fc: 2 points, stored as their sum in 32-bit float"),
        "mixed": (QuantizedTensor(codes, step, 1.5), "fc: 1.5 bits on average, stored with 2"),
        "shifts": (
            QuantizedTensor(codes, step, 4, extra=Shifts(3, torch.ones(5, dtype=torch.int32))),
            "fc: shared shifts, stored as codes of 4 bits",
        ),
        "filters": (
            QuantizedTensor(
                codes * (bits > 0).unsqueeze(1), step * torch.ones(5, 1), 1.6, extra=Filters(bits.to(torch.int32))
            ),
            None,
        ),
        "planes": (
            QuantizedTensor(codes * 2, step, 2, extra=Planes((1, 2))),
            "fc: 2 bit positions, stored as codes of 3 bits",
        ),
        "grid": (QuantizedTensor(codes.abs(), step, 2, "inside", Grid(torch.tensor([-1.0, -0.1, 0.2, 1.5]))), None),
    }


@pytest.mark.parametrize("name", methods())
def test_what_a_method_adds_is_stored_or_said(name: str, tmp_path: Path) -> None:
    tensor, note = methods()[name]
    net = shaken(TinyNet())
    with torch.no_grad():
        net.get_parameter("fc.weight").copy_(tensor.dequantize())
    exported = export_packed(tmp_path / "file", net, QuantizedState({"fc": tensor}))
    assert exported.notes == (() if note is None else (note,))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(load(exported.path, TinyNet())(x), net(x))


def test_every_filter_is_stored_with_its_own_bits(tmp_path: Path) -> None:
    net, size = nn.Sequential(nn.Conv2d(16, 64, 3, bias=False)), 16 * 9
    quantizer = FilterQuantizer(net[0].weight, 4)
    quantizer.adjust_precision_([0, 1, 2, 7] * 16)
    state = QuantizedState({"0": quantizer.tensor()})
    with torch.no_grad():
        net[0].weight.copy_(quantizer.weight())
    exported = export_packed(tmp_path / "file", net, state)
    back = read_packed(exported.path)
    assert torch.equal(back.state.tensors["0"].dequantize(), quantizer.weight())
    assert back.state.scheme() == state.scheme()
    assert back.parts["steps"] == 48 * 4 and back.parts["codes"] == 16 * size * (2 + 3 + 8) // 8 + 64 * 3 // 8
    assert back.parts["codes"] + back.parts["steps"] == state.scheme().bits("model") / 8


def test_shared_weights_are_stored_once(tmp_path: Path) -> None:
    def build() -> nn.Module:
        net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        net[2].weight = net[0].weight
        return net

    net = build()
    codes = torch.randint(-3, 4, (6, 6), dtype=torch.int32)
    state = QuantizedState({"0": QuantizedTensor(codes, torch.tensor(0.1), 2)}, owners={"2": "0"})
    with torch.no_grad():
        net[0].weight.copy_(state.tensors["0"].dequantize())
    exported = export_packed(tmp_path / "file", net, state)
    assert read_packed(exported.path).parts["float_parameters"] == 2 * 6 * 4
    x = torch.randn(3, 6)
    assert torch.equal(load(exported.path, build())(x), net(x))


def test_activations_at_inputs_and_with_each_batchs_range(tmp_path: Path) -> None:
    net, state, x = tiny()
    sites = (QuantizedActivation("conv2", "input", 3, 6.0, 0.0), QuantizedActivation("fc", "input", 2, None, 0.4))
    state = replace(state, activations=sites)
    path = export_packed(tmp_path / "file", net, state).path
    with torch.no_grad():
        expected = hook_activations_(net, sites)(x)
        assert torch.equal(load(path, TinyNet())(x), expected)
        assert torch.equal(load(path, load(path, TinyNet()))(x), expected), "a second load rounds twice"


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    net, state, _ = tiny()
    path = export_packed(tmp_path / "file", net, state).path
    with pytest.raises(ValueError, match=r"file does not fit ResNetCifar: \d+ names or shapes differ"):
        load(path, resnet20())
    other = TinyNet()
    other.fc = nn.Linear(6, 7)
    before = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match=r"does not fit TinyNet: 2 names or shapes differ .*fc\.weight, fc\.bias"):
        load(path, other)
    assert all(torch.equal(value, before[key]) for key, value in other.state_dict().items())


def test_a_code_beyond_its_bits_and_a_step_that_is_no_number_are_not_written(tmp_path: Path) -> None:
    net, state, _ = tiny()
    wrong = replace(state, tensors={**state.tensors, "fc": replace(state.tensors["fc"], precision=1)})
    with pytest.raises(ValueError, match="fc: codes from .* do not fit in 1 bits"):
        export_packed(tmp_path / "file", net, wrong)
    assert not list(tmp_path.iterdir())


def forged(path: Path, change: Any) -> None:
    """Writes the file again with another index and a checksum that agrees."""
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    index = change(json.loads(metadata["index"]), arrays)
    text = index if isinstance(index, str) else json.dumps(index)
    save_file(arrays, path, metadata | {"index": text, "sha256": checksum(text, arrays)})


def changed(value: Any) -> Iterator[Any]:
    """Every JSON that differs from ``value`` in one place, by a value of another kind or size."""
    for other in (None, -1, 10**30, 1e308, True, "x", [], {}, [[[]]], float("nan")):
        yield other
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in list(inside):
        for other in changed(part):
            whole = copy.copy(value)
            whole[key] = other
            yield whole


def test_no_forged_index_does_more_than_be_refused(tmp_path: Path) -> None:
    """Each leaf in turn becomes something else: the file loads, or is refused by name, and nothing else happens."""
    net, state, x = tiny()
    good, path = export_packed(tmp_path / "good", net, state).path, tmp_path / "file"
    with safe_open(good, framework="pt") as file:
        index = json.loads(file.metadata()["index"])
    index["tensors"] = index["tensors"][:2]
    variants = [variant for variant in changed(index) if variant != index]
    assert len(variants) > 500
    refused = 0
    for variant in variants:
        path.write_bytes(good.read_bytes())
        forged(path, lambda *_, variant=variant: variant)
        verify(path)
        try:
            load(path, TinyNet())(x)
        except ValueError as error:
            refused += "file" in str(error)
    assert refused > 0.8 * len(variants)


def bomb(index: dict, arrays: dict) -> Any:
    index["tensors"][0][1:3] = [2**28, 2**28], 0
    return index


def deepness(index: dict, arrays: dict) -> Any:
    return "[" * 100_000


def no_codes(index: dict, arrays: dict) -> Any:
    del arrays["codes"]
    return index


def codes_of_floats(index: dict, arrays: dict) -> Any:
    arrays["codes"] = arrays["codes"].float()
    return index


def no_number(index: dict, arrays: dict) -> Any:
    arrays["steps"][0] = float("nan")
    return index


@pytest.mark.parametrize("change", [bomb, deepness, no_codes, codes_of_floats, no_number])
def test_a_hostile_file_is_refused_by_name(change: Any, tmp_path: Path) -> None:
    net, state, _ = tiny()
    path = export_packed(tmp_path / "hostile", net, state).path
    forged(path, change)
    with pytest.raises(ValueError, match="hostile is not a whole packed network"):
        load(path, TinyNet())
    assert not verify(path).passed


@pytest.mark.parametrize(
    "change", [{2: 6}, {2: 99}, {2: True}, {3: "inside"}, {4: 3}, {5: 1}, {6: "other"}, {1: [64]}, {1: [64, 1 << 24]}]
)
def test_a_hostile_table_of_filters_is_refused_by_name(change: dict[int, Any], tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(8, 64, bias=False))
    quantizer = FilterQuantizer(net[0].weight, 4)
    quantizer.adjust_precision_([0, 1, 2, 7] * 16)
    with torch.no_grad():
        net[0].weight.copy_(quantizer.weight())
    path = export_packed(tmp_path / "hostile", net, QuantizedState({"0": quantizer.tensor()})).path

    def lie(index: dict, arrays: dict) -> dict:
        for place, value in change.items():
            index["tensors"][0][place] = value
        return index

    forged(path, lie)
    with pytest.raises(ValueError, match="hostile is not a whole packed network"):
        read_packed(path)
