"""What a format holds of a quantized tensor: plain codes and steps; the rest takes the next larger form, by name."""

import math
from dataclasses import replace

from bsq_lightning.quantized_tensor import Filters, Grid, Planes, Points, QuantizedState, QuantizedTensor, Shifts


def plain_form(
    name: str, tensor: QuantizedTensor, holds: tuple[type, ...] = ()
) -> tuple[QuantizedTensor | None, str | None]:
    """The tensor as whole-bit codes times steps, or None where only floats hold it; and what was changed, in words.

    The weights stay the same in every case; what becomes larger is how they are stored.

    Args:
        name: of the tensor, for the words.
        tensor: any.
        holds: what the format holds beyond codes and steps: ``Grid``, ``Filters``.

    Example:
        >>> import torch
        >>> codes = torch.tensor([1, 0, -1], dtype=torch.int32)
        >>> plain_form("conv", QuantizedTensor(codes, torch.tensor(0.5), precision=0.5))[1]
        'conv: 0.5 bits on average, stored with 1'
    """
    extra = tensor.extra
    if isinstance(extra, Filters) and not bool(extra.bits.any()):
        return replace(tensor, extra=None), None
    if isinstance(extra, holds):
        return tensor, None
    if isinstance(extra, Points):
        return None, f"{name}: {1 + len(extra.codes)} points, stored as their sum in 32-bit float"
    if isinstance(extra, Grid):
        return None, f"{name}: a codebook, stored as 32-bit float"
    if isinstance(extra, Planes):
        bits = max(extra.alive, default=-1) + 1
        note = f"{name}: {len(extra.alive)} bit positions, stored as codes of {bits} bits"
        return replace(tensor, precision=bits, extra=None), note if bits != len(extra.alive) else None
    if isinstance(extra, Filters):
        bits = int(extra.bits.max())
        note = f"{name}: filters of {int(extra.bits.min())} to {bits} bits, stored with {bits}"
        return replace(tensor, precision=bits, extra=None), note if tensor.precision != bits else None
    bits = math.ceil(tensor.precision)
    if isinstance(extra, Shifts):
        return replace(tensor, precision=bits, extra=None), f"{name}: shared shifts, stored as codes of {bits} bits"
    note = f"{name}: {tensor.precision:g} bits on average, stored with {bits}" if bits != tensor.precision else None
    return replace(tensor, precision=bits), note


def plain_forms(
    state: QuantizedState, holds: tuple[type, ...] = ()
) -> tuple[dict[str, QuantizedTensor | None], list[str]]:
    """``plain_form`` of every tensor, and all that was changed."""
    found = {name: plain_form(name, tensor, holds) for name, tensor in state.tensors.items()}
    return {name: form for name, (form, _) in found.items()}, [note for _, note in found.values() if note]


def code_bits(tensor: QuantizedTensor) -> int:
    """Bits of one signed code of a tensor in plain form; of a codebook, of a place in it; 0 where W is zero."""
    if isinstance(tensor.extra, Grid):
        return max(1, math.ceil(math.log2(tensor.extra.values.numel())))
    return int(tensor.precision) + (tensor.sign == "extra") if tensor.precision else 0
