"""A quantized network on crossbars of memory cells: what its slices ask of the converters, and what it computes with
converters that are too narrow (``ops/bit_slices.py`` has the arithmetic and its sources)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsq_lightning.ops.bit_slices import (
    BITS,
    ROWS,
    SLICE_BITS,
    SliceUse,
    adc_bits,
    column_sums,
    saturating_conv2d,
    saturating_matmul,
    slice_count,
    slice_uses,
    slices,
)
from bsq_lightning.quantized_tensor import Grid, Points, QuantizedState, QuantizedTensor

FLOAT_INPUT_BITS = 8  # of an input that the network leaves float: pixels, sums, averages
ON_GRID = 1e-3  # in steps: what rounding errors of float32 leave


@dataclass(frozen=True)
class Crossbars:
    """The machine.

    Args:
        rows: inputs of a crossbar.
        slice_bits: bits of a cell.

    Raises:
        ValueError: fewer than one row or bit.
    """

    rows: int = ROWS
    slice_bits: int = SLICE_BITS

    def __post_init__(self) -> None:
        if self.rows < 1 or not 1 <= self.slice_bits <= BITS:
            raise ValueError(f"crossbars have at least one row, and 1 to {BITS} bits a cell, not {self}")


def crossbar_codes(name: str, tensor: QuantizedTensor) -> Tensor:
    """The signed integers that the cells hold, ``[K, ...]``.

    Raises:
        ValueError: a tensor that is no array of integers times steps.
    """
    if isinstance(tensor.extra, Points):
        raise ValueError(f"{name} is a sum of several arrays of codes (multipoint), which crossbars here do not hold")
    if isinstance(tensor.extra, Grid):
        values = tensor.extra.values
        if not torch.equal(values, values.round()):
            raise ValueError(f"{name} has a codebook of other values than integers, which cells cannot hold")
        return values[tensor.codes.long()].to(torch.int32)
    return tensor.codes


def code_bits(state: QuantizedState) -> int:
    """Bits that every layer's codes are cut into slices with: 8, more where a code needs more."""
    tensors = _weights(state)
    return max([BITS, *(int(codes.abs().max()).bit_length() for codes in tensors.values() if codes.numel())])


def layer_uses(state: QuantizedState, machine: Crossbars) -> dict[str, list[SliceUse]]:
    """What each layer's slices ask for, least significant first.

    Example:
        >>> tensor = QuantizedTensor(torch.tensor([[1, 0], [-64, 1]], dtype=torch.int32), torch.tensor(0.1), 7)
        >>> [use.largest for use in layer_uses(QuantizedState({"fc": tensor}), Crossbars())["fc"]]
        [1, 0, 0, 1]
    """
    bits = code_bits(state)
    return {name: slice_uses(codes, machine.rows, bits, machine.slice_bits) for name, codes in _weights(state).items()}


def _weights(state: QuantizedState) -> dict[str, Tensor]:
    """Codes of all weights; a bias is added after the converters."""
    return {name: crossbar_codes(name, t) for name, t in state.tensors.items() if t.codes.dim() > 1}


@dataclass(frozen=True)
class Split:
    """A layer's codes, by whether converters can saturate on their slices.

    Args:
        safe: codes of the slices that converters read exactly; multiplied as they are.
        narrow: codes of the others.
    """

    safe: Tensor
    narrow: Tensor


def split(codes: Tensor, adc: Sequence[int], bits: int, machine: Crossbars) -> Split:
    """Takes a layer's slices apart, so that only those are computed slowly that saturate.

    Raises:
        ValueError: not one number of ADC bits for each slice.
    """
    if len(adc) != slice_count(bits, machine.slice_bits):
        raise ValueError(f"{slice_count(bits, machine.slice_bits)} slices need as many numbers of ADC bits: {adc}")
    sums = column_sums(codes, machine.rows, bits, machine.slice_bits).flatten(1).amax(1).tolist()
    digits = slices(codes, bits, machine.slice_bits)
    safe = torch.zeros_like(codes)
    for k, (digit, largest, width) in enumerate(zip(digits, sums, adc, strict=True)):
        if width >= adc_bits(int(largest)):
            safe = safe + (digit << (k * machine.slice_bits))
    safe = safe * codes.sign()
    return Split(safe, codes - safe)


@dataclass(frozen=True)
class InputGrid:
    """How a layer's input is sent to its crossbars.

    Args:
        bits: of its magnitude.
        largest: magnitude of the largest code.
    """

    bits: int
    largest: float

    @property
    def step(self) -> float:
        """Value of one code; 1 where nothing but zeros was seen."""
        return self.largest / (2**self.bits - 1) or 1.0


@contextmanager
def on_crossbars(
    net: nn.Module, state: QuantizedState, inputs: Mapping[str, InputGrid], adc: Sequence[int], machine: Crossbars
) -> Iterator[None]:
    """Inside, every quantized layer of ``net`` computes as crossbars do, with converters of ``adc`` bits.

    A layer's input is rounded to its grid first. Biases, batch norm and activations are computed as ever.

    Args:
        net: the plain network, in evaluation mode.
        state: its tensors.
        inputs: of each layer, by name.
        adc: bits of the converter of each slice, least significant slice first.
        machine: rows and cells.

    Raises:
        ValueError: a layer that is neither Conv2d with zero padding nor Linear.
    """
    bits = code_bits(state)
    tensors = dict(state.tensors) | {name: state.tensors[owner] for name, owner in state.owners.items()}
    replaced: list[nn.Module] = []
    try:
        for name, tensor in tensors.items():
            if tensor.codes.dim() < 2:
                continue
            module = net.get_submodule(name)
            _check(name, module)
            parts = split(crossbar_codes(name, tensor), adc, bits, machine)
            layer = _Layer(module, parts, tensor.step, inputs[name], tuple(adc), bits, machine)
            module.forward = partial(_forward, layer)  # type: ignore[method-assign]
            replaced.append(module)
        yield
    finally:
        for module in replaced:
            del module.forward


@torch.no_grad()
def input_grids(net: nn.Module, bits: Mapping[str, int], batches: Sequence[Tensor]) -> dict[str, InputGrid]:
    """The grid of each layer's input: with its bits where all of it lies on that grid, else with 8.

    Args:
        net: the network as it is, in evaluation mode.
        bits: of each layer's input, as the network has them.
        batches: images whose largest activations are the ends of the grids.
    """
    largest = dict.fromkeys(bits, 0.0)
    off = dict.fromkeys(bits, 0.0)

    def see(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        largest[name] = max(largest[name], float(inputs[0].abs().max()))

    def compare(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        codes = inputs[0].double() / InputGrid(bits[name], largest[name]).step
        off[name] = max(off[name], float((codes - codes.round()).abs().max()))

    for ask in (see, compare):
        hooks = [net.get_submodule(name).register_forward_pre_hook(partial(ask, name)) for name in bits]
        try:
            for images in batches:
                net(images)
        finally:
            for hook in hooks:
                hook.remove()
    whole = {name: n <= FLOAT_INPUT_BITS and off[name] < ON_GRID for name, n in bits.items()}
    return {name: InputGrid(n if whole[name] else FLOAT_INPUT_BITS, largest[name]) for name, n in bits.items()}


@dataclass(frozen=True)
class _Layer:
    module: Any
    codes: Split
    step: Tensor
    input: InputGrid
    adc: tuple[int, ...]
    bits: int
    machine: Crossbars


def _forward(layer: _Layer, x: Tensor) -> Tensor:
    module, machine = layer.module, layer.machine
    top, unit = 2**layer.input.bits - 1, layer.input.step
    read = (x.double() / unit).round().clamp(-top, top)
    more = {"rows": machine.rows, "bits": layer.bits, "slice_bits": machine.slice_bits}
    safe, narrow = layer.codes.safe, layer.codes.narrow
    if isinstance(module, nn.Linear):
        flat = read.flatten(0, -2)
        sums = flat @ safe.double().T
        if bool(narrow.any()):
            sums = sums + saturating_matmul(flat.to(torch.int32), narrow, layer.adc, layer.input.bits, **more)
        sums = sums.unflatten(0, read.shape[:-1])
        shape: tuple[int, ...] = (-1,)
    else:
        how = {key: getattr(module, key) for key in ("stride", "padding", "dilation", "groups")}
        sums = F.conv2d(read, safe.double(), **how)
        if bool(narrow.any()):
            sums = sums + saturating_conv2d(read.to(torch.int32), narrow, layer.adc, layer.input.bits, **how, **more)
        shape = (-1, 1, 1)
    result = sums * (layer.step.double().flatten().view(shape) * unit)
    if module.bias is not None:
        result = result + module.bias.double().view(shape)
    return result.to(x.dtype)


def _check(name: str, module: nn.Module) -> None:
    plain = isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str)
    if not (plain or isinstance(module, nn.Linear)):
        raise ValueError(
            f"{name}: crossbars compute linear layers and two-dimensional convolutions padded with zeros by a number"
        )
