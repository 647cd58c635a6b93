"""What a packed file holds, read as a stranger's: every number and name is checked before it is used."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bsq_lightning.exporters.forms import code_bits
from bsq_lightning.ops.packing import pack, packed_bytes, unpack
from bsq_lightning.quantized_tensor import SIGNS, Filters, Grid, QuantizedActivation, QuantizedState, QuantizedTensor

FORMAT = "bsq_lightning.packed.1"
LARGEST = 1 << 30  # weights of a layer; one of 0 bits takes no bytes whose number would tell
PRECISIONS = range(17)
NETWORK = ("float_parameters", "act_precision", "macs", "input_bits", "owners")
ERRORS = (SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


@dataclass(frozen=True)
class Packed:
    """A packed file.

    Args:
        state: quantized tensors and activations.
        rest: by name in the state dict what stays float.
        parts: bytes of its parts, which together are the file. ``codes``, ``steps`` and ``float_parameters`` are what
            a scheme counts as the model; ``buffers`` (running statistics), ``card`` and ``header`` (names, shapes,
            scheme, checksum) come on top.
        notes: in words, what is stored otherwise than the method stores it.
        card: what was given at the export.
    """

    state: QuantizedState
    rest: dict[str, Tensor]
    parts: dict[str, int]
    notes: tuple[str, ...]
    card: dict[str, Any]


def read_packed(path: str | Path) -> Packed:
    """Reads what ``export_packed`` wrote. Only numbers and names are taken, nothing is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut, altered or something else; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        index, arrays = _read(path)
        steps, codes = _Taken(arrays["steps"]), _Taken(arrays["codes"])
        tensors = {_name(name): _tensor(row, codes, steps) for name, *row in index["tensors"]}
        for name, tensor in tensors.items():
            if tensor.precision:
                tensor.check(name)
        _want(bool(torch.isfinite(arrays["steps"]).all()), "a step that is not finite")
        taken = {key: _Taken(value) for key, value in arrays.items()}
        floats = {part: _floats(index[part], taken) for part in ("parameters", "buffers")}
        activations = tuple(_activation(*row) for row in index["activations"])
        state = QuantizedState(tensors, activations, **_network(index["network"]))
        parts = {"codes": _bytes(arrays["codes"]), "steps": _bytes(arrays["steps"])}
        parts["float_parameters"] = sum(map(_bytes, floats["parameters"].values()))
        parts["buffers"] = sum(map(_bytes, floats["buffers"].values()))
        notes, card = tuple(map(_name, index["notes"])), index["card"]
        _want(isinstance(card, dict), f"a card of {type(card).__name__}")
        parts["card"] = _quoted(card) if card else 0
        parts["header"] = path.stat().st_size - sum(parts.values())
        return Packed(state, floats["parameters"] | floats["buffers"], parts, notes, card)
    except (*ERRORS, OSError) as error:
        raise ValueError(f"{path} is not a whole packed network ({type(error).__name__}: {error})") from error


def checksum(text: str, arrays: Mapping[str, Tensor]) -> str:
    """sha256 over a text and over names, types, shapes and bytes of arrays."""
    digest = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {list(arrays[key].shape)}".encode())
        digest.update(arrays[key].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def filter_parts(tensor: QuantizedTensor, bits: Tensor) -> tuple[list[Tensor], Tensor]:
    """Codes of a tensor with bits for each filter: the table of bits, then the filters of 1 bit, of 2, ...; and the
    steps of those that have bits.

    Args:
        tensor: its codes ``[K, ...]`` and steps.
        bits: int32 ``[K]``, not all 0.
    """
    width = int(bits.max()).bit_length()
    codes, step = tensor.codes.cpu(), tensor.step.cpu().flatten()
    table = pack(bits - (1 << (width - 1)), width)
    return [table, *(pack(codes[bits == n], n + 1) for n in _used(bits))], step[bits > 0]


class _Taken:
    """An array that is handed out piece by piece."""

    def __init__(self, array: Tensor) -> None:
        self.array, self.start = array, 0

    def take(self, count: int) -> Tensor:
        start, self.start = self.start, self.start + count
        _want(self.start <= len(self.array), f"{self.start} numbers, where {len(self.array)} are,")
        return self.array[start : self.start]


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        _want(metadata.get("format") == FORMAT, f"a format of {metadata.get('format')!r}")
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    _want(checksum(metadata["index"], arrays) == metadata["sha256"], "content of another checksum")
    return json.loads(metadata["index"]), arrays


def _tensor(row: list[Any], codes: _Taken, steps: _Taken) -> QuantizedTensor:
    if len(row) == 6:
        return _filters(row, codes, steps)
    shape, precision, sign, channels, levels = row
    _want(_is_count(precision) and precision in PRECISIONS, f"a precision of {precision!r}")
    _want(sign in SIGNS and _is_count(channels) and _is_count(levels), f"sign, steps and levels of {row[2:]}")
    count = _count(shape)
    step = steps.take(channels)
    step = step.view(()) if channels == 1 else step.view(channels, *[1] * (len(shape) - 1))
    grid = Grid(steps.take(levels)) if levels else None
    # Weights of 0 bits are one zero, seen everywhere.
    empty = QuantizedTensor(torch.zeros((), dtype=torch.int32).expand(shape), step, precision, sign, grid)
    if not (width := code_bits(empty)):
        return empty
    values = unpack(codes.take(packed_bytes(count, width)), width, count).view(shape)
    return QuantizedTensor(values + (1 << (width - 1)) if grid else values, step, precision, sign, grid)


def _filters(row: list[Any], codes: _Taken, steps: _Taken) -> QuantizedTensor:
    """What ``filter_parts`` made."""
    shape, most, sign, channels, levels, kind = row
    _want(_is_count(most) and most in PRECISIONS[1:] and (sign, levels, kind) == ("extra", 0, "filters"), f"{row[1:]}")
    _want(_count(shape) > 0 and len(shape) > 1 and channels == shape[0], f"steps of {channels} filters of {shape}")
    width = most.bit_length()
    bits = unpack(codes.take(packed_bytes(channels, width)), width, channels) + (1 << (width - 1))
    _want(int(bits.max()) == most, f"filters of {int(bits.max())} bits, where {most} are the most,")
    size, parts = math.prod(shape[1:]), {}
    for n in _used(bits):
        count = int((bits == n).sum())
        parts[n] = unpack(codes.take(packed_bytes(count * size, n + 1)), n + 1, count * size).view(count, *shape[1:])
    values = torch.zeros(shape, dtype=torch.int32)
    for n, part in parts.items():
        values[bits == n] = part
    step = torch.zeros(channels)
    step[bits > 0] = steps.take(int((bits > 0).sum()))
    extra = Filters(bits)
    return QuantizedTensor(values, step.view(channels, *[1] * (len(shape) - 1)), extra.precision, extra=extra)


def _used(bits: Tensor) -> list[int]:
    return [n for n in bits.unique().tolist() if n]


def _activation(site: Any, at: Any, bits: Any, clip: Any, size: Any) -> QuantizedActivation:
    _want(isinstance(site, str) and at in ("input", "output"), f"activations at the {at!r} of {site!r}")
    _want(_is_count(bits) and bits in PRECISIONS[1:], f"activations of {bits!r} bits")
    numbers = [size] if clip is None else [size, clip]
    good = all(isinstance(each, (int, float)) and math.isfinite(each) and each >= 0 for each in numbers)
    _want(good, f"a clip of {clip!r} and a range of {size!r}")
    return QuantizedActivation(site, at, bits, clip, size)


def _network(network: Any) -> dict[str, Any]:
    """What a ``QuantizedState`` has beside tensors and activations."""
    _want(_is_count(network["float_parameters"]) and network["act_precision"] in PRECISIONS, "numbers of the network")
    for key, fits in (("macs", _is_count), ("input_bits", _is_count), ("owners", lambda value: isinstance(value, str))):
        _want(isinstance(network[key], dict) and all(map(fits, network[key].values())), f"{key} of the network")
    return {key: network[key] for key in NETWORK}


def _floats(rows: list[Any], taken: Mapping[str, _Taken]) -> dict[str, Tensor]:
    found = {}
    for row in rows:
        name, shape, word = row if len(row) == 3 else (*row, "float32")
        found[_name(name)] = taken[f"rest.{word}"].take(_count(shape)).view(shape)
    return found


def _name(value: Any) -> str:
    _want(isinstance(value, str), f"a name of {value!r}")
    return value


def _count(shape: Any) -> int:
    _want(isinstance(shape, list) and all(map(_is_count, shape)), f"a shape of {shape!r}")
    count = math.prod(shape)
    _want(count <= LARGEST, f"a shape of {shape}")
    return count


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 62


def _want(good: bool, what: str) -> None:
    if not good:
        raise ValueError(f"{what} cannot be")


def _quoted(card: Any) -> int:
    """Bytes of JSON in a string of JSON, as the file has it."""
    return len(json.dumps(json.dumps(card, separators=(",", ":")))) - 2


def _bytes(array: Tensor) -> int:
    return array.numel() * array.element_size()
