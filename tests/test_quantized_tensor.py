"""The exchange type: W bit for bit, sizes by hand, files that come back, and files that are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bsq_lightning.quantized_tensor import (
    Filters,
    Grid,
    Planes,
    Points,
    QuantizedActivation,
    QuantizedState,
    QuantizedTensor,
    Shifts,
    load_state,
    save_state,
)
from bsq_lightning.scheme import Scheme


def codes(high: int, *shape: int) -> torch.Tensor:
    return torch.randint(-high, high + 1, shape, dtype=torch.int32)


def examples() -> dict[str, QuantizedTensor]:
    channels = torch.rand(6, 1, 1, 1)
    second = torch.rand(1, 6, 1, 1, 1) * (torch.arange(6) < 2).view(1, 6, 1, 1, 1)
    return {
        "per_tensor": QuantizedTensor(codes(7, 6, 4, 3, 3), torch.tensor(0.3), 3),
        "per_channel": QuantizedTensor(codes(7, 6, 4, 3, 3), channels, 4, sign="inside"),
        "zero": QuantizedTensor(torch.zeros(6, 4, dtype=torch.int32), torch.tensor(0.0), 0),
        "mixed": QuantizedTensor(codes(1, 6, 4), torch.tensor(0.1), 1.5),
        "points": QuantizedTensor(codes(1, 6, 4, 3, 3), channels, 2, "inside", Points(codes(1, 1, 6, 4, 3, 3), second)),
        "shifts": QuantizedTensor(
            codes(255, 6, 4, 3, 3), torch.tensor(0.01), 8, "extra", Shifts(4, torch.full((6,), 2, dtype=torch.int32))
        ),
        "filters": QuantizedTensor(
            codes(1, 4, 6), torch.rand(4, 1), 1.25, "extra", Filters(torch.tensor([1, 2, 1, 1], dtype=torch.int32))
        ),
        "planes": QuantizedTensor(codes(4, 6, 4) // 4 * 4, torch.tensor(0.1), 3, "extra", Planes((0, 2))),
        "grid": QuantizedTensor(codes(2, 6, 4).abs(), torch.tensor(2.0), 2, "inside", Grid(torch.tensor([-1.0, 0, 1]))),
    }


ALL = pytest.mark.parametrize("name", examples())


@ALL
def test_the_file_brings_everything_back(name: str, tmp_path: Path) -> None:
    tensor = examples()[name]
    activation = QuantizedActivation("relu", "output", 4, 6.0, 3.5)
    state = QuantizedState({name: tensor}, (activation,), 12, 4, {name: 100, "float": 7}, {name: 4})
    save_state(tmp_path / "quantized.safetensors", state)
    back = load_state(tmp_path / "quantized.safetensors")
    assert torch.equal(back.tensors[name].dequantize(), tensor.dequantize())
    assert back.scheme() == state.scheme()
    assert back.activations == (activation,)
    assert back.tensors[name].precision == tensor.precision and back.tensors[name].sign == tensor.sign
    for counting in ("storage_bits", "magnitude_bits", "side_bits"):
        assert getattr(back.tensors[name], counting)() == getattr(tensor, counting)()


@ALL
def test_a_scheme_keeps_the_sizes_through_json(name: str) -> None:
    tensor = examples()[name]
    scheme = QuantizedState({name: tensor}, float_parameters=3).scheme()
    assert Scheme.from_json(scheme.to_json()) == scheme
    assert scheme.bits("paper") == tensor.magnitude_bits()
    assert scheme.bits("signed") == tensor.storage_bits()
    assert scheme.bits("model") == tensor.storage_bits() + tensor.side_bits() + 32 * 3


def test_sizes_by_hand() -> None:
    of = examples()
    weights = 6 * 4 * 9
    assert of["per_tensor"].storage_bits() == weights * 4 and of["per_tensor"].magnitude_bits() == weights * 3
    assert of["per_channel"].storage_bits() == weights * 4 and of["per_channel"].magnitude_bits() == weights * 3
    assert of["per_channel"].side_bits() == 6 * 32
    assert of["zero"].storage_bits() == 0
    assert of["mixed"].storage_bits() == 24 * 2.5
    assert of["points"].storage_bits() == (weights + 2 * 36) * 2  # two channels have a second point
    assert of["points"].side_bits() == 32 * (6 + 2)
    assert of["shifts"].storage_bits() == 6 * 9 * (4 + 2 * 4 + 2 * 3)  # SWIS: M signs, N M masks, N ceil(log2 8)
    assert of["planes"].storage_bits() == 24 * 3
    assert of["grid"].side_bits() == 32 * (1 + 3)


def test_filters_that_differ_are_never_taken_for_whole_bits() -> None:
    tensor = QuantizedTensor(codes(1, 2, 6), torch.rand(2, 1), 2.0, extra=Filters(torch.tensor([1, 3]).int()))
    tensor.check("conv")
    again = Scheme.from_json(QuantizedState({"conv": tensor}).scheme().to_json())
    assert isinstance(again.layers[0].precision, float)
    assert tensor.magnitude_bits() == 6 * 4 and tensor.storage_bits() == 6 * 6
    assert tensor.side_bits() == 2 * 32 + 2 * 2


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"codes": torch.zeros(2, dtype=torch.int32), "step": torch.rand(2)}, "no numbers of bits"),
        ({"codes": torch.zeros(2, 0, dtype=torch.int32)}, "no numbers of bits"),
        ({"extra": Filters(torch.tensor([1.0, 3.0]))}, "no numbers of bits"),
        ({"extra": Filters(torch.tensor([1, 17]).int()), "precision": 9.0}, "no numbers of bits"),
        ({"extra": Filters(torch.tensor([1, 3, 2]).int())}, "no numbers of bits"),
        ({"sign": "inside"}, "signs beside"),
        ({"step": torch.tensor(0.1)}, "a step for each"),
        ({"precision": 2.5}, "not the mean"),
        ({"codes": torch.full((2, 6), 2, dtype=torch.int32)}, "filter 0 does not fit in 1 bits"),
    ],
)
def test_filters_that_do_not_fit_are_named(change: dict, word: str) -> None:
    given = {"codes": codes(1, 2, 6), "step": torch.rand(2, 1), "precision": 2.0}
    given["extra"] = Filters(torch.tensor([1, 3]).int())
    with pytest.raises(ValueError, match=word):
        QuantizedTensor(**{**given, **change}).check("conv")


def test_points_are_added() -> None:
    tensor = examples()["points"]
    assert isinstance(tensor.extra, Points)
    by_hand = tensor.codes * tensor.step + tensor.extra.codes[0] * tensor.extra.step[0]
    assert torch.equal(tensor.dequantize(), by_hand)


def test_codes_take_the_smallest_type(tmp_path: Path) -> None:
    state = QuantizedState(
        {
            "a": QuantizedTensor(codes(127, 5), torch.tensor(1.0), 7),
            "b": QuantizedTensor(codes(255, 999), torch.tensor(1.0), 8),
        }
    )
    save_state(tmp_path / "q.safetensors", state)
    arrays = load_file(tmp_path / "q.safetensors")
    assert arrays["a:codes"].dtype == torch.int8 and arrays["b:codes"].dtype == torch.int16


def test_wrong_parts_are_refused() -> None:
    with pytest.raises(ValueError, match="codes are int32"):
        QuantizedTensor(torch.zeros(3), torch.tensor(1.0), 1)
    with pytest.raises(ValueError, match="does not belong to codes"):
        QuantizedTensor(codes(1, 3, 2), torch.ones(2), 1)
    with pytest.raises(ValueError, match="sign is one of"):
        QuantizedTensor(codes(1, 3), torch.tensor(1.0), 1, sign="none")


def test_codes_that_do_not_fit_are_not_written(tmp_path: Path) -> None:
    state = QuantizedState({"conv": QuantizedTensor(torch.tensor([4], dtype=torch.int32), torch.tensor(1.0), 2)})
    with pytest.raises(ValueError, match="conv: codes from 4 to 4 do not fit in 2 bits"):
        save_state(tmp_path / "q.safetensors", state)
    assert not (tmp_path / "q.safetensors").exists()


@pytest.mark.parametrize("damage", ["cut", "foreign", "float_codes", "huge_precision", "missing", "text"])
def test_a_damaged_file_is_named(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "quantized.safetensors"
    save_state(path, QuantizedState({"conv": examples()["per_tensor"]}))
    arrays = load_file(path)
    notes = json.dumps({"conv": {"precision": 3, "sign": "extra"}})
    network = json.dumps({"activations": [], "float_parameters": 0})
    good = {"format": "bsq_lightning.quantized.1", "tensors": notes, "network": network}
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    elif damage == "text":
        path.write_text("not a tensor file")
    elif damage == "foreign":
        save_file(arrays, path)
    elif damage == "float_codes":
        save_file({"conv:codes": arrays["conv:codes"], "conv:step": torch.tensor(float("nan"))}, path, good)
    elif damage == "huge_precision":
        save_file(arrays, path, good | {"tensors": notes.replace("3", "1e9")})
    else:
        save_file({"conv:step": arrays["conv:step"]}, path, good)
    with pytest.raises(ValueError, match="quantized.safetensors cannot be read as a quantized network"):
        load_state(path)
