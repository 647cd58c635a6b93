"""The exchange type: what a quantized network is, whichever method made it, and the file that carries it.

A tensor is integer codes with a step; a network is its tensors, the places where activations are quantized, and how
much stays float. Schemes, sizes, cards, exporters and reports read this and never ask for the method.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from bsq_lightning.files import write_whole
from bsq_lightning.ops.tensor_file import tensor_file
from bsq_lightning.scheme import FLOAT_BITS, LayerScheme, Scheme

FORMAT = "bsq_lightning.quantized.1"
SIGNS = ("extra", "inside")
MOST_BITS = 16
CODE_DTYPES = (torch.int8, torch.int16, torch.int32)


@dataclass(frozen=True)
class Points:
    """Further low-bit tensors that are added to ``codes * step`` (multipoint quantization).

    Args:
        codes: int32, ``[points, *S]``.
        step: ``[points, K, 1, ...]``; 0 where an output channel has fewer points.
    """

    codes: Tensor
    step: Tensor


@dataclass(frozen=True)
class Shifts:
    """Codes whose set bits are shared by groups of weights (SWIS): how they are stored, not what they are.

    Args:
        group: weights M of one group, along the reduction dimension of a filter.
        number: shifts N of a group, int32, one for each filter ``[K]``.
        consecutive: whether the shifts of a group follow each other (SWIS-C), so that one offset tells them all.
    """

    group: int
    number: Tensor
    consecutive: bool = False


@dataclass(frozen=True)
class Planes:
    """Codes of which only some bit positions are stored, not necessarily neighbours (CSQ).

    Args:
        alive: bit positions, least significant first.
    """

    alive: tuple[int, ...]


@dataclass(frozen=True)
class Filters:
    """Codes of which each filter has bits of its own.

    Args:
        bits: of magnitude, int32, one for each filter ``[K]``; at 0 the filter is zero, and has neither sign nor step.

    Example:
        >>> Filters(torch.tensor([1, 3])).precision, Filters(torch.tensor([2, 2])).precision
        (2.0, 2)
    """

    bits: Tensor

    @property
    def precision(self) -> int | float:
        """What the tensor says: the mean, a float wherever filters differ; their bits, where they do not."""
        equal = bool((self.bits == self.bits[0]).all())
        return int(self.bits[0]) if equal else float(self.bits.double().mean())


@dataclass(frozen=True)
class Grid:
    """A codebook: codes are places in ``values``, ``W = values[codes] * step``.

    Args:
        values: float, ``[levels]``.
        stored: whether the codebook is stored; not where it follows from the number of bits (equal distances).
    """

    values: Tensor
    stored: bool = True


Extra = Points | Shifts | Planes | Filters | Grid


@dataclass(frozen=True)
class QuantizedTensor:
    """One weight tensor W of shape S: ``W = codes * step``, exactly.

    Args:
        codes: int32, shape S.
        step: float, value of one code; 0-d, or ``[K, 1, ...]`` for a step per output channel.
        precision: bits of one code; a whole number, or a mean, a float, where a method mixes them. 0: W is zero.
        sign: ``extra`` if the sign is one bit more (BSQ: n bits have 2^(n+1) - 1 levels), ``inside`` if it is one of
            ``precision`` bits (n bits have 2^n levels at most).
        extra: what a method needs beyond codes and step.

    Raises:
        ValueError: codes that are not int32, a step that does not broadcast to them, or a sign of another name.

    Example:
        >>> tensor = QuantizedTensor(torch.tensor([[3, -1], [0, 2]], dtype=torch.int32), torch.tensor(0.5), precision=2)
        >>> tensor.dequantize(), tensor.storage_bits(), tensor.magnitude_bits()
        (tensor([[ 1.5000, -0.5000],
                [ 0.0000,  1.0000]]), 12, 8)
    """

    codes: Tensor
    step: Tensor
    precision: int | float
    sign: str = "extra"
    extra: Extra | None = None

    def __post_init__(self) -> None:
        if self.codes.dtype != torch.int32:
            raise ValueError(f"codes are int32, not {self.codes.dtype}")
        if not self.step.is_floating_point() or not _broadcasts(self.step, self.codes):
            raise ValueError(
                f"a step of shape {list(self.step.shape)} does not belong to codes of {list(self.codes.shape)}: it is "
                "0-d, or has the size of the first dimension and ones behind it"
            )
        if self.sign not in SIGNS:
            raise ValueError(f"sign is one of {', '.join(SIGNS)}, not {self.sign!r}")

    def dequantize(self) -> Tensor:
        """W, ``[*S]``, in the dtype of ``step``: equal to what the network computes with (0.0 and -0.0 are equal)."""
        if isinstance(self.extra, Grid):
            return self.extra.values[self.codes.long()] * self.step
        weight = self.codes.to(self.step.dtype) * self.step
        if isinstance(self.extra, Points):
            for codes, step in zip(self.extra.codes, self.extra.step, strict=True):
                weight = weight + codes.to(step.dtype) * step
        return weight

    def storage_bits(self) -> int:
        """Bits of the codes with their signs, as the method stores them; ``side_bits`` come beside."""
        return self._bits(signs=True)

    def magnitude_bits(self) -> int:
        """The same without signs, as the BSQ paper counts."""
        return self._bits(signs=False)

    def side_bits(self) -> int:
        """Bits of steps and of stored codebooks, 32 each; and of the table that tells the bits of each filter."""
        if isinstance(self.extra, Filters):
            table = len(self.codes) * int(self.extra.bits.max()).bit_length()
            return FLOAT_BITS * int((self.extra.bits > 0).sum()) + table
        steps = self.step.numel() + (int((self.extra.step != 0).sum()) if isinstance(self.extra, Points) else 0)
        values = self.extra.values.numel() if isinstance(self.extra, Grid) and self.extra.stored else 0
        return FLOAT_BITS * (steps + values)

    def _bits(self, signs: bool) -> int:
        count = self.codes.numel()
        if not self.precision or not count:
            return 0
        if isinstance(self.extra, Shifts):
            return self._shift_bits(self.extra, signs)
        if isinstance(self.extra, Planes):
            return count * (len(self.extra.alive) + signs)
        if isinstance(self.extra, Filters):
            bits = self.extra.bits.long()
            return int((bits + signs * (bits > 0)).sum()) * self.codes[0].numel()
        each = self.precision + (signs if self.sign == "extra" else signs - 1)
        if isinstance(self.extra, Points):
            used = int((self.extra.step != 0).sum())  # points of channels, beyond the first
            count += used * (count // max(1, len(self.codes)))
        return math.ceil(count * each)

    def _shift_bits(self, shifts: Shifts, signs: bool) -> int:
        """M signs, N M masks and N positions (consecutive: one offset) for each group of each filter."""
        positions = int(self.precision)
        groups = math.ceil(self.codes[0].numel() / shifts.group)
        total = 0
        for number in shifts.number.tolist():
            where = math.ceil(math.log2(positions - number + 1)) if shifts.consecutive else None
            each = number * math.ceil(math.log2(positions)) if where is None else where
            total += groups * (shifts.group * (number + signs) + each) if number else 0
        return total

    def fitting(self) -> "QuantizedTensor":
        """With as many bits as its codes need: planes may hold larger codes than ``precision`` says between two
        adjustments."""
        if self.sign != "extra" or self.extra is not None or not self.codes.numel():
            return self
        return replace(self, precision=max(self.precision, int(self.codes.abs().max()).bit_length()))

    def check(self, name: str) -> None:
        """Raises ValueError, naming the tensor, for a code beyond ``precision`` bits or a step that is not finite."""
        if not bool(torch.isfinite(self.step).all()):
            raise ValueError(f"{name}: its step is not finite")
        if isinstance(self.extra, Filters):
            self._check_filters(name, self.extra.bits)
        low, high = self._range()
        if self.codes.numel() and not (low <= int(self.codes.min()) and int(self.codes.max()) <= high):
            raise ValueError(
                f"{name}: codes from {int(self.codes.min())} to {int(self.codes.max())} do not fit in {self.precision} "
                f"bits (sign {self.sign})"
            )

    def _check_filters(self, name: str, bits: Tensor) -> None:
        shaped = self.codes.dim() > 1 and self.codes.numel() and bits.shape == self.codes.shape[:1]
        if not shaped or bits.dtype != torch.int32 or not 0 <= int(bits.min()) <= int(bits.max()) <= MOST_BITS:
            raise ValueError(f"{name} has no numbers of bits, whole and at most {MOST_BITS}, for filters of its own")
        if self.sign != "extra" or self.step.numel() != len(bits):
            raise ValueError(f"{name} has filters with bits of their own, but not a step for each and signs beside")
        if self.precision != Filters(bits).precision:
            raise ValueError(f"{name}: {self.precision} bits are not the mean of its filters")
        for k, (n, largest) in enumerate(zip(bits.tolist(), self.codes.abs().flatten(1).amax(1).tolist(), strict=True)):
            if largest >= 2**n:
                raise ValueError(f"{name}: a code of {largest} in filter {k} does not fit in {n} bits")

    def _range(self) -> tuple[int, int]:
        if isinstance(self.extra, Filters):
            top = 2 ** int(self.extra.bits.max()) - 1
            return -top, top
        if isinstance(self.extra, Grid):
            return 0, self.extra.values.numel() - 1
        bits = max(self.extra.alive, default=-1) + 1 if isinstance(self.extra, Planes) else math.ceil(self.precision)
        return (
            (1 - 2**bits, 2**bits - 1)
            if self.sign == "extra" or not bits
            else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )


@dataclass(frozen=True)
class QuantizedActivation:
    """One place where activations are rounded to ``2^bits - 1`` steps up to ``range``.

    Args:
        site: name of the module.
        at: ``input`` or ``output`` of that module.
        bits: bits of magnitude.
        clip: values are clipped to ``+-clip`` first; None if they are not.
        range: the fixed largest value; 0 where each batch has its own.
    """

    site: str
    at: str
    bits: int
    clip: float | None
    range: float


@dataclass(frozen=True)
class QuantizedState:
    """A quantized network as data: all its tensors and activations, and what stays float.

    Args:
        tensors: by name of the layer (``conv1``; a bias is ``fc.bias``), in the order of the network.
        activations: in the order of the network.
        float_parameters: number of parameters that stay in 32-bit float.
        act_precision: bits of activations, 0 for float.
        macs: multiply-accumulates of each layer for one image, float layers included; empty if not counted.
        input_bits: bits of each layer's input; empty if not counted.
        owners: of a layer whose weight is that of another one, that layer.
    """

    tensors: Mapping[str, QuantizedTensor]
    activations: tuple[QuantizedActivation, ...] = ()
    float_parameters: int = 0
    act_precision: int = 0
    macs: Mapping[str, int] = field(default_factory=dict)
    input_bits: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, str] = field(default_factory=dict)

    def fitting(self) -> "QuantizedState":
        """With as many bits for each tensor as its codes need."""
        return replace(self, tensors={name: tensor.fitting() for name, tensor in self.tensors.items()})

    def scheme(self) -> Scheme:
        """Bits, steps and costs of every layer as plain data."""
        layers = tuple(
            LayerScheme(
                name,
                size=tensor.codes.numel(),
                precision=tensor.precision,
                step=float(tensor.step.double().mean()),
                macs=self.macs.get(name, 0),
                bits_of_input=self.input_bits.get(name, 0),
                stored=_stored(tensor),
            )
            for name, tensor in self.tensors.items()
        )  # fmt: skip
        shared = tuple(
            (owner, self.macs[name], self.input_bits.get(name, 0))
            for name, owner in self.owners.items()
            if name in self.macs
        )
        rest = sum(macs for name, macs in self.macs.items() if name not in self.tensors and name not in self.owners)
        return Scheme(layers, self.float_parameters, self.act_precision, rest, shared)


def save_state(path: str | Path, state: QuantizedState) -> None:
    """Writes ``quantized.safetensors``: codes in the smallest integer type that holds them, the rest as metadata.

    Raises:
        ValueError: a code that its precision does not hold.
        OSError: the file cannot be written.
    """
    arrays: dict[str, Tensor] = {}
    notes: dict[str, Any] = {}
    for name, tensor in state.tensors.items():
        tensor.check(name)
        parts, notes[name] = to_parts(tensor)
        arrays |= {f"{name}:{key}": part.cpu() for key, part in parts.items()}
    network = {key: value for key, value in asdict(_without_tensors(state)).items() if key != "tensors"}
    metadata = {"format": FORMAT, "tensors": json.dumps(notes), "network": json.dumps(network)}
    write_whole(path, tensor_file(arrays, metadata))


def load_state(path: str | Path) -> QuantizedState:
    """Reads what ``save_state`` wrote. Only numbers and names are taken, nothing is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut, altered or something else; the message names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: it is written at the end of every stage of a run that quantizes")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"its format is {metadata.get('format')!r}, not {FORMAT!r}")
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        notes, network = json.loads(metadata["tensors"]), json.loads(metadata["network"])
        tensors = {
            name: from_parts(
                name, {k.removeprefix(f"{name}:"): a for k, a in arrays.items() if k.startswith(f"{name}:")}, note
            )
            for name, note in notes.items()
        }
        activations = tuple(QuantizedActivation(**each) for each in network.pop("activations"))
        return QuantizedState(tensors, activations, **network)
    except (SafetensorError, ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a quantized network ({type(error).__name__}: {error})") from error


def _without_tensors(state: QuantizedState) -> QuantizedState:
    return QuantizedState(
        {}, state.activations, state.float_parameters, state.act_precision,
        dict(state.macs), dict(state.input_bits), dict(state.owners),
    )  # fmt: skip


def to_parts(tensor: QuantizedTensor) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A tensor as arrays (``codes``, ``step``, ``points.codes``, ...) and what else there is to say, as JSON has it.

    Example:
        >>> parts, note = to_parts(QuantizedTensor(torch.tensor([3, 1], dtype=torch.int32), torch.tensor(0.5), 2))
        >>> list(parts), parts["codes"].dtype, note
        (['codes', 'step'], torch.int8, {'precision': 2, 'sign': 'extra'})
    """
    parts = {"codes": _smallest(tensor.codes), "step": tensor.step.detach().contiguous()}
    note: dict[str, Any] = {"precision": tensor.precision, "sign": tensor.sign}
    if tensor.extra is None:
        return parts, note
    kind = type(tensor.extra).__name__.lower()
    note[kind] = {}
    for key, value in vars(tensor.extra).items():
        if isinstance(value, Tensor):
            whole = not value.is_floating_point()
            parts[f"{kind}.{key}"] = _smallest(value) if whole else value.detach().contiguous()
        else:
            note[kind][key] = value
    return parts, note


def from_parts(name: str, parts: Mapping[str, Tensor], note: Mapping[str, Any]) -> QuantizedTensor:
    """The tensor that ``to_parts`` took apart, checked.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: the parts are not those of a tensor.
    """
    precision = note["precision"]
    if isinstance(precision, bool) or not isinstance(precision, (int, float)) or not 0 <= precision <= FLOAT_BITS:
        raise ValueError(f"{name} has a precision of {precision!r}")
    codes, extra = parts["codes"].to(torch.int32), _restore(name, note, parts)
    tensor = QuantizedTensor(codes, parts["step"], precision, note["sign"], extra)
    tensor.check(name)
    return tensor


def _restore(name: str, note: Mapping[str, Any], parts: Mapping[str, Tensor]) -> Extra | None:
    for made in (Points, Shifts, Planes, Filters, Grid):
        kind = made.__name__.lower()
        if kind in note:
            given = dict(note[kind])
            for key, value in parts.items():
                if key.startswith(f"{kind}."):
                    given[key.removeprefix(f"{kind}.")] = value if value.is_floating_point() else value.to(torch.int32)
            if made is Planes and not all(isinstance(b, int) and 0 <= b < FLOAT_BITS for b in given["alive"]):
                raise ValueError(f"{name} has bit positions outside 0 to {FLOAT_BITS - 1}")
            return made(tuple(given["alive"])) if made is Planes else made(**given)
    return None


def _smallest(codes: Tensor) -> Tensor:
    """The same integers in the smallest type that holds them."""
    low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    dtype = next(t for t in CODE_DTYPES if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max)
    return codes.detach().to(dtype).contiguous()


def _broadcasts(step: Tensor, codes: Tensor) -> bool:
    if step.dim() == 0:
        return True
    return tuple(step.shape) == (len(codes), *[1] * (codes.dim() - 1)) if codes.dim() else False


def _stored(tensor: QuantizedTensor) -> tuple[int, int, int] | None:
    """The three sizes; None where they follow from the precision: a sign beside whole bits, and one step."""
    if isinstance(tensor.precision, int) and tensor.sign == "extra" and tensor.extra is None and tensor.step.dim() == 0:
        return None
    return tensor.magnitude_bits(), tensor.storage_bits(), tensor.side_bits()
