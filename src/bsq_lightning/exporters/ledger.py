"""How large a network is in every form, and why the forms differ."""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from bsq_lightning.exporters.kinds import kind_of, program_files, read_model
from bsq_lightning.exporters.packed_file import read_packed
from bsq_lightning.exporters.pair import plain_copy
from bsq_lightning.quantized_tensor import QuantizedState


@dataclass(frozen=True)
class LedgerRow:
    """One form of the network.

    Args:
        form: its name.
        size: bytes.
        parts: of a file, what its bytes are; together they are ``size``.
        note: why it is so large.
    """

    form: str
    size: int
    parts: dict[str, int]
    note: str = ""

    @property
    def reason(self) -> str:
        """Parts and note in one line."""
        parts = ", ".join(f"{name} {size}" for name, size in self.parts.items())
        return "; ".join(each for each in (parts, self.note) if each)


def size_ledger(net: nn.Module, state: QuantizedState, files: Mapping[str, str | Path]) -> tuple[LedgerRow, ...]:
    """Bytes of the claimed sizes, of a float checkpoint and of exported files, each with its reason.

    Args:
        net: plain network.
        state: its quantized tensors.
        files: exported files by the name that their row is to have; a packed one is also compressed with zstd, where
            the package is installed, which tells what entropy coding would still give.

    Returns:
        Rows: the claims first, then the checkpoint, then the files in their order.

    Raises:
        FileNotFoundError: a file is not there.
        ValueError: a file is not whole.
    """
    scheme = state.scheme()
    plain = plain_copy(net, state)
    buffer = io.BytesIO()
    torch.save(plain.state_dict(), buffer)
    weights = sum(_bytes(parameter) for parameter in plain.parameters())
    buffers = sum(_bytes(value) for value in plain.buffers())
    size = len(buffer.getvalue())
    rows = [
        LedgerRow(f"claim: {counting}", math.ceil(scheme.bits(counting) / 8), {}, note)
        for counting, note in (
            ("paper", f"{scheme.mean_precision:.2f} bits of magnitude on average for {scheme.size} weights"),
            ("signed", "a sign bit for each weight of a layer or filter that is not empty"),
            ("model", f"steps, tables of what is mixed, and {state.float_parameters} parameters in 32-bit float"),
        )
    ]
    parts = {"parameters": weights, "running statistics": buffers, "names and archive": size - weights - buffers}
    rows.append(LedgerRow("float checkpoint", size, parts))
    for name, path in files.items():
        kind = kind_of(path)
        describe = {"packed": _packed, "onnx": _onnx, "torch_export": _program}[kind]
        rows.append(describe(name, Path(path)))
        if kind == "packed" and find_spec("zstandard"):
            rows.append(_compressed(name, path, state))
    return tuple(rows)


def entropy_bits(codes: Tensor) -> float:
    """Bits that an ideal entropy coder with one table takes for all of ``codes``.

    Example:
        >>> entropy_bits(torch.tensor([0, 0, 1, 1]))
        4.0
    """
    _, counts = torch.unique(codes, return_counts=True)
    share = counts.double() / max(1, codes.numel())
    return float(-(counts.double() * share.log2()).sum()) + 0.0


def _packed(name: str, path: Path) -> LedgerRow:
    parts = {part.replace("_", " "): size for part, size in read_packed(path).parts.items()}
    return LedgerRow(name, path.stat().st_size, parts, "running statistics, card and header are no part of the claim")


def _compressed(name: str, path: str | Path, state: QuantizedState) -> LedgerRow:
    import zstandard

    size = len(zstandard.ZstdCompressor(level=19).compress(Path(path).read_bytes()))
    ideal = math.ceil(sum(entropy_bits(tensor.codes) for tensor in state.tensors.values()) / 8)
    note = f"level 19; an ideal coder with one table a layer would take {ideal} for the codes"
    return LedgerRow(f"{name} + zstd", size, {}, note)


def _onnx(name: str, path: Path) -> LedgerRow:
    import onnx

    sizes: dict[str, int] = {}
    for initializer in read_model(path).graph.initializer:
        word = f"{onnx.TensorProto.DataType.Name(initializer.data_type).lower()} initializers"
        sizes[word] = sizes.get(word, 0) + initializer.ByteSize()
    size = path.stat().st_size
    parts = dict(sorted(sizes.items())) | {"graph": size - sum(sizes.values())}
    return LedgerRow(name, size, parts, "integers of 2, 4, 8 and 16 bits only, signs included")


def _program(name: str, path: Path) -> LedgerRow:
    sizes = program_files(path)
    size = path.stat().st_size
    weights = sum(part for file, part in sizes.items() if file.startswith("data/weights/weight_"))
    graph = sizes.get("models/model.json", 0)
    parts = {"weights": weights, "graph": graph, "names and archive": size - weights - graph}
    return LedgerRow(name, size, parts, "weights as 32-bit floats, the graph as JSON")


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
