"""One safetensors file with every code at its own width: what ``load`` needs to make the same network again.

Arrays: ``codes`` (all packed codes), ``steps`` and ``rest.<dtype>`` (what is not quantized), each one array for all
layers, because a name costs more than many a layer. Metadata: ``index``, a JSON object that tells their parts in
order, and ``sha256`` over all of it.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from bsq_lightning.exporters.forms import code_bits, plain_forms
from bsq_lightning.exporters.pair import (
    Exported,
    check_target,
    float_rest,
    hook_activations_,
    plain_copy,
    state_key,
    write_export,
)
from bsq_lightning.ops.packing import pack, packed_bytes, unpack
from bsq_lightning.quantized_tensor import Grid, QuantizedActivation, QuantizedState, QuantizedTensor

FORMAT = "bsq_lightning.packed.1"
LARGEST = 1 << 30  # weights of a layer; one of 0 bits takes no bytes whose number would tell
COUNTER = "num_batches_tracked"  # batch norm reads it in training only
ERRORS = (SafetensorError, ValueError, TypeError, KeyError, AttributeError, IndexError, OverflowError, RecursionError)


def export_packed(
    path: str | Path,
    net: nn.Module,
    state: QuantizedState,
    inputs: Tensor | None = None,
    *,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes ``net`` as one file of packed codes; ``load`` makes the same network of it, with the same logits.

    Args:
        path: the file.
        net: plain network; its quantized weights are those of ``state``.
        state: what is quantized.
        inputs: not needed; all exporters are called alike.
        card: anything that JSON holds, kept beside the scheme.
        overwrite: replace a file that exists.

    Returns:
        The file; ``report`` tells the bytes of its parts (``contents``).

    Raises:
        FileExistsError: the file exists.
        ValueError: network and state do not fit, or a code does not fit in its bits.
        OSError: the file cannot be written.
    """
    check_target(path, overwrite)
    plain = plain_copy(net, state)
    forms, notes = plain_forms(state, grids=True)
    rest = {key: value for key, value in float_rest(plain, state).items() if not key.endswith(COUNTER)}
    codes, steps, tensors = [torch.empty(0, dtype=torch.uint8)], [torch.empty(0)], []
    for name, form in forms.items():
        if form is None:  # only floats hold it
            rest[state_key(name)] = state.tensors[name].dequantize().cpu()
            continue
        form.check(name)
        grid = form.extra.values if isinstance(form.extra, Grid) else None
        if any(value.dtype != torch.float32 for value in (form.step, *([] if grid is None else [grid]))):
            raise ValueError(f"{name}: packed steps are 32-bit floats, not {form.step.dtype}")
        tensors.append([name, list(form.codes.shape), form.precision, form.sign, form.step.numel(), _size(grid)])
        steps += [form.step.cpu().flatten(), *([] if grid is None else [grid.cpu()])]
        if width := code_bits(form):
            codes.append(pack(form.codes.cpu() - (0 if grid is None else 1 << (width - 1)), width))
    parameters = dict(plain.named_parameters(remove_duplicate=False))
    index = {
        "tensors": tensors,
        "parameters": [_row(key, value) for key, value in rest.items() if key in parameters],
        "buffers": [_row(key, value) for key, value in rest.items() if key not in parameters],
        "activations": [list(asdict(activation).values()) for activation in state.activations],
        "network": {key: _plain(getattr(state, key)) for key in NETWORK},
        "notes": notes,
        "card": dict(card or {}),
    }
    arrays = {"codes": torch.cat(codes), "steps": torch.cat(steps)}
    rest = {row[0]: rest[row[0]] for row in index["parameters"] + index["buffers"]}
    for word in dict.fromkeys(_word(value) for value in rest.values()):
        arrays[f"rest.{word}"] = torch.cat([value.flatten() for value in rest.values() if _word(value) == word])
    text = json.dumps(index, separators=(",", ":"), allow_nan=False)
    content = save(arrays, {"format": FORMAT, "index": text, "sha256": _checksum(text, arrays)})
    written = write_export(path, content, overwrite)
    return Exported(written, len(content), tuple(notes), contents(written))


def load(path: str | Path, net: nn.Module) -> nn.Module:
    """Puts the weights of a packed file into ``net``, in place, and rounds its activations; returns it, in evaluation.

    Args:
        path: a file of ``export_packed``.
        net: the architecture that was exported, on any device, with any weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut, altered or something else, or does not fit ``net``; the message names the file.
    """
    state, rest = read_packed(path)
    own = net.state_dict()
    given = {state_key(name): tensor for name, tensor in state.tensors.items()}
    aliases = {state_key(name): given.get(state_key(owner)) for name, owner in state.owners.items()}
    shapes = {key: list(tensor.codes.shape) for key, tensor in (given | aliases).items() if tensor is not None}
    shapes |= {key: list(value.shape) for key, value in rest.items()}
    needed = [key for key in own if not key.endswith(COUNTER)]
    wrong = [key for key in needed if shapes.get(key) != list(own[key].shape)] + [
        key for key in shapes if key not in own
    ]
    if wrong:
        raise ValueError(
            f"{path} does not fit {type(net).__name__}: {len(wrong)} entries differ in name or shape "
            f"({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}). Build the architecture that was exported."
        )
    with torch.no_grad():
        for key, value in rest.items():
            own[key].copy_(value)
        for key, tensor in given.items():
            own[key].copy_(tensor.dequantize())
    return hook_activations_(net, state.activations).eval()


def read_packed(path: str | Path) -> tuple[QuantizedState, dict[str, Tensor]]:
    """What a packed file holds: the quantized state, and by name the tensors that stay float.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut, altered or something else; the message names the file. Nothing in it is executed.
    """
    index, arrays = _read(path)
    try:
        steps, codes = _Taken(arrays["steps"]), _Taken(arrays["codes"])
        tensors = {name: _tensor(row, codes, steps) for name, *row in index["tensors"]}
        for name, tensor in tensors.items():
            if tensor.precision:
                tensor.check(name)
        if not bool(torch.isfinite(arrays["steps"]).all()):
            raise ValueError("a step is not finite")
        parts = {key: _Taken(value) for key, value in arrays.items()}
        rest = {
            key: parts[f"rest.{word}"].take(_count(shape)).view(shape)
            for key, shape, word in map(_filled, index["parameters"] + index["buffers"])
        }
        activations = tuple(_activation(*row) for row in index["activations"])
        return QuantizedState(tensors, activations, **{key: index["network"][key] for key in NETWORK}), rest
    except ERRORS as error:
        raise ValueError(f"{path} is not a whole packed network ({type(error).__name__}: {error})") from error


def contents(path: str | Path) -> dict[str, int]:
    """Bytes of the parts of a packed file; together they are the file.

    ``codes``, ``steps`` and ``float_parameters`` are what a scheme counts as the model. ``buffers`` (running
    statistics) and ``header`` (names, shapes, scheme, card, checksum) come on top.
    """
    index, arrays = _read(path)
    sizes = {
        part: sum(_count(shape) * arrays[f"rest.{word}"].element_size() for _, shape, word in map(_filled, index[part]))
        for part in ("parameters", "buffers")
    }
    parts = {
        "codes": _bytes(arrays["codes"]),
        "steps": _bytes(arrays["steps"]),
        "float_parameters": sizes["parameters"],
        "buffers": sizes["buffers"],
    }
    return parts | {"header": Path(path).stat().st_size - sum(parts.values())}


def read_card(path: str | Path) -> dict[str, Any]:
    """The card that was given at the export."""
    return dict(_read(path)[0]["card"])


NETWORK = ("float_parameters", "act_precision", "macs", "input_bits", "owners")


class _Taken:
    """An array that is handed out piece by piece."""

    def __init__(self, array: Tensor) -> None:
        self.array, self.start = array, 0

    def take(self, count: int) -> Tensor:
        start, self.start = self.start, self.start + count
        if count < 0 or self.start > len(self.array):
            raise ValueError(f"{self.start} numbers are named and {len(self.array)} are there")
        return self.array[start : self.start]


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if _checksum(metadata["index"], arrays) != metadata["sha256"]:
            raise ValueError("its content is not what its checksum says")
        return json.loads(metadata["index"]), arrays
    except (*ERRORS, OSError) as error:
        raise ValueError(f"{path} is not a whole packed network ({type(error).__name__}: {error})") from error


def _checksum(text: str, arrays: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256(text.encode())
    for key in sorted(arrays):
        digest.update(f"{key} {arrays[key].dtype} {list(arrays[key].shape)}".encode())
        digest.update(arrays[key].contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensor(row: list[Any], codes: _Taken, steps: _Taken) -> QuantizedTensor:
    shape, precision, sign, channels, levels = row
    if isinstance(precision, bool) or not isinstance(precision, int) or not 0 <= precision <= 16:
        raise ValueError(f"a precision of {precision!r}")
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


def _activation(site: str, at: str, bits: int, clip: float | None, size: float) -> QuantizedActivation:
    numbers = [size] if clip is None else [size, clip]
    if not 1 <= bits <= 16 or not all(math.isfinite(number) and number >= 0 for number in numbers):
        raise ValueError(f"{site}: activations of {bits} bits, clip {clip}, range {size}")
    return QuantizedActivation(str(site), str(at), int(bits), clip, float(size))


def _count(shape: list[int]) -> int:
    count = math.prod(shape)
    if any(not isinstance(size, int) or size < 0 for size in shape) or count > LARGEST:
        raise ValueError(f"a shape of {shape}")
    return count


def _row(key: str, value: Tensor) -> list[Any]:
    """Name, shape, and the type unless it is the usual one."""
    return [key, list(value.shape), *([] if value.dtype == torch.float32 else [_word(value)])]


def _filled(row: list[Any]) -> tuple[str, list[int], str]:
    key, shape, word = row if len(row) == 3 else (*row, "float32")
    return key, shape, word


def _word(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _size(values: Tensor | None) -> int:
    return 0 if values is None else values.numel()


def _bytes(array: Tensor) -> int:
    return array.numel() * array.element_size()
