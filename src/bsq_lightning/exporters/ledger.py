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
        reason: what the bytes are.
    """

    form: str
    size: int
    reason: str


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
        LedgerRow(f"claim: {counting}", math.ceil(scheme.bits(counting) / 8), reason)
        for counting, reason in (
            ("paper", f"{scheme.mean_precision:.2f} bits of magnitude on average for {scheme.size} weights"),
            ("signed", "a sign bit for each weight of a layer that is not empty"),
            ("model", f"steps, and {state.float_parameters} parameters in 32-bit float"),
        )
    ]
    names = size - weights - buffers
    rows.append(
        LedgerRow("float checkpoint", size, f"parameters {weights}, running statistics {buffers}, rest {names}")
    )
    for name, path in files.items():
        kind = kind_of(path)
        describe = {"packed": _packed, "onnx": _onnx, "torch_export": _program}[kind]
        rows.append(LedgerRow(name, Path(path).stat().st_size, describe(path)))
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


def _packed(path: str | Path) -> str:
    return ", ".join(f"{part.replace('_', ' ')} {size}" for part, size in read_packed(path).parts.items())


def _compressed(name: str, path: str | Path, state: QuantizedState) -> LedgerRow:
    import zstandard

    size = len(zstandard.ZstdCompressor(level=19).compress(Path(path).read_bytes()))
    ideal = math.ceil(sum(entropy_bits(tensor.codes) for tensor in state.tensors.values()) / 8)
    return LedgerRow(f"{name} + zstd", size, f"level 19; an ideal coder with one table a layer: codes {ideal}")


def _onnx(path: str | Path) -> str:
    import onnx

    model = read_model(path)
    sizes: dict[str, int] = {}
    for initializer in model.graph.initializer:
        word = onnx.TensorProto.DataType.Name(initializer.data_type).lower()
        sizes[word] = sizes.get(word, 0) + initializer.ByteSize()
    rest = Path(path).stat().st_size - sum(sizes.values())
    parts = ", ".join(f"{word} initializers {size}" for word, size in sorted(sizes.items()))
    return f"{parts}, graph {rest}; whole types only, so 2 bits and a sign take 4"


def _program(path: str | Path) -> str:
    sizes = program_files(path)
    weights = sum(size for name, size in sizes.items() if name.startswith("data/weights/weight_"))
    graph = sizes.get("models/model.json", 0)
    rest = Path(path).stat().st_size - weights - graph
    return f"weights in 32-bit float {weights}, graph in JSON {graph}, rest {rest}"


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
