"""One safetensors file with every code at its own width: what ``load`` needs to make the same network again.

Arrays: ``codes`` (all packed codes), ``steps`` and ``rest.<dtype>`` (what is not quantized), each one array for all
layers, because a name costs more than many a layer. Metadata: ``index``, a JSON object that tells their parts in
order, and ``sha256`` over all of it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.exporters.forms import code_bits, plain_forms
from bsq_lightning.exporters.packed_file import FORMAT, NETWORK, checksum, filter_parts, read_packed
from bsq_lightning.exporters.pair import (
    Exported,
    check_target,
    float_rest,
    hook_activations_,
    plain_copy,
    state_key,
    write_export,
)
from bsq_lightning.ops.packing import pack
from bsq_lightning.ops.tensor_file import tensor_file
from bsq_lightning.quantized_tensor import Filters, Grid, QuantizedState

COUNTER = "num_batches_tracked"  # batch norm reads it in training only


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
        The file; ``report`` tells the bytes of its parts (``Packed.parts``).

    Raises:
        FileExistsError: the file exists.
        ValueError: network and state do not fit, or a code does not fit in its bits.
        OSError: the file cannot be written.
    """
    check_target(path, overwrite)
    plain = plain_copy(net, state)
    forms, notes = plain_forms(state, holds=(Grid, Filters))
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
        row = [name, list(form.codes.shape), form.precision, form.sign, form.step.numel(), _size(grid)]
        if isinstance(form.extra, Filters):
            parts, step = filter_parts(form, form.extra.bits.cpu())
            tensors.append([*row[:2], int(form.extra.bits.max()), *row[3:], "filters"])
            codes, steps = codes + parts, [*steps, step]
            continue
        tensors.append(row)
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
    content = tensor_file(arrays, {"format": FORMAT, "index": text, "sha256": checksum(text, arrays)})
    written = write_export(path, content, overwrite)
    return Exported(written, len(content), tuple(notes), read_packed(written).parts)


def load(path: str | Path, net: nn.Module) -> nn.Module:
    """Puts the weights of a packed file into ``net``, in place, and rounds its activations; returns it, in evaluation.

    Args:
        path: a file of ``export_packed``.
        net: the architecture that was exported, on any device, with any weights.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut, altered or something else, or does not fit ``net``; the message names the file.
    """
    packed = read_packed(path)
    state, rest, own = packed.state, packed.rest, net.state_dict()
    given = {state_key(name): tensor for name, tensor in state.tensors.items()}
    aliases = {state_key(name): given.get(state_key(owner)) for name, owner in state.owners.items()}
    shapes = {key: list(tensor.codes.shape) for key, tensor in (given | aliases).items() if tensor is not None}
    shapes |= {key: list(value.shape) for key, value in rest.items()}
    needed = [key for key in own if not key.endswith(COUNTER)]
    wrong = [key for key in needed if shapes.get(key) != list(own[key].shape)] + [
        key for key in shapes if key not in own
    ]
    wrong += [site.site for site in state.activations if site.site not in dict(net.named_modules())]
    if wrong:
        raise ValueError(
            f"{path} does not fit {type(net).__name__}: {len(wrong)} names or shapes differ "
            f"({', '.join(wrong[:3])}{', ...' if len(wrong) > 3 else ''}). Build the architecture that was exported."
        )
    with torch.no_grad():
        for key, value in rest.items():
            own[key].copy_(value)
        for key, tensor in given.items():
            own[key].copy_(tensor.dequantize())
    return hook_activations_(net, state.activations).eval()


def _row(key: str, value: Tensor) -> list[Any]:
    """Name, shape, and the type unless it is the usual one."""
    return [key, list(value.shape), *([] if value.dtype == torch.float32 else [_word(value)])]


def _word(value: Tensor) -> str:
    return str(value.dtype).removeprefix("torch.")


def _plain(value: Any) -> Any:
    return dict(value) if isinstance(value, Mapping) else value


def _size(values: Tensor | None) -> int:
    return 0 if values is None else values.numel()
