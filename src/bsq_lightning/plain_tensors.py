"""Reads what ``torch.save`` wrote: plain tensors, and never more memory than the file has bytes.

``weights_only`` keeps a file from running code. It does not keep a few bytes from asking for gigabytes: an archive can
be compressed a thousandfold, list one member many times, name ``bytearray`` with a number, or show one number as a
tensor of any shape. ``torch.save`` does none of these, so all are refused before anything is made in that size.
"""

import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

_ZIP, _LEGACY_PICKLES = b"PK\x03\x04", 5
_PLAIN = {
    "collections.OrderedDict", "collections.Counter", "_codecs.encode", "builtins.set", "builtins.complex",
    "__builtin__.set", "__builtin__.complex", "torch.Size", "torch.Tensor", "torch.device",
    "torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2", "torch.nn.parameter.Parameter",
    "torch.serialization._get_layout", "torch.storage.TypedStorage", "torch.storage.UntypedStorage",
}  # fmt: skip
"""What plain tensors and containers are made of. Sparse, quantized, nested and meta tensors are not among them."""


def load_plain(path: Path, mapped: bool = False) -> Any:
    """The content of a file of ``torch.save``, on the CPU; nothing in it is executed.

    Args:
        path: the file.
        mapped: leaves the numbers in the file until they are used: shapes can be compared with what is needed before a
            byte of them is read. The file must stay as it is while the tensors live (replaced, not written over).

    Raises:
        ValueError: it asks for more memory than it has bytes, or for something else than dense tensors and plain
            containers; without the name of the file, which the caller knows how to put.
        Exception: whatever torch raises for a damaged file.
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if is_zip := file.read(4) == _ZIP:
            _check_archive(file, size)
        else:
            file.seek(0)
            _check_legacy(file)
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped and is_zip)
    for tensor in tensors_in(content):
        _check_tensor(tensor, size)
    return content


def _check_archive(file: IO[bytes], size: int) -> None:
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if _stated_directory(file, size) != archive.start_dir:
            raise ValueError("its directory is not where it says, so two readers would see two files: save it again")
        packed = [member.filename for member in members if member.compress_type != zipfile.ZIP_STORED]
        total = sum(member.file_size for member in members)
        if packed or total > size:
            what = f"{packed[0]} is compressed" if packed else "members overlap"
            raise ValueError(
                f"{what}, and its {size:,} bytes would become {total:,}: torch.save never does that. If you trust the "
                "file, read it with torch.load and save it again"
            )
        for member in members:
            if member.filename.lower().endswith(".pkl"):  # torch looks for data.pkl in any case
                with archive.open(member) as content:
                    _check_names(content)


def _stated_directory(file: IO[bytes], size: int) -> int:
    """Where the end of the archive says that its directory begins; Python would also find it elsewhere."""
    file.seek(max(0, size - 42))
    tail = file.read()
    locator, end = tail[:20], tail[20:]
    if locator[:4] == b"PK\x06\x07":  # an archive above 4 GB
        file.seek(struct.unpack("<Q", locator[8:16])[0])
        return struct.unpack("<Q", file.read(56)[48:56])[0]
    if end[:4] != b"PK\x05\x06":
        raise ValueError("something follows its directory")
    return struct.unpack("<L", end[16:20])[0]


def _check_legacy(file: IO[bytes]) -> None:
    """The format before torch 1.6: five pickles, then the numbers. What is no pickle, torch refuses itself."""
    for _ in range(_LEGACY_PICKLES):
        start = file.tell()
        try:
            _check_names(file)
        except (AttributeError, EOFError, UnicodeDecodeError):
            return
        except ValueError as error:
            if isinstance(error, RefusedError) or start == 0:
                raise
            return


class RefusedError(ValueError):
    """A name that no plain file contains."""


def _check_names(content: IO[bytes]) -> None:
    for opcode, argument, _ in pickletools.genops(content):
        if opcode.name == "GLOBAL":
            name = str(argument).replace(" ", ".")
            if name not in _PLAIN and not _is_storage_or_dtype(name):
                raise RefusedError(f"it asks for {name}: only dense tensors and plain containers are read")


def _is_storage_or_dtype(name: str) -> bool:
    if re.fullmatch(r"torch\.(cuda\.)?[A-Za-z0-9]+Storage", name):
        return True
    return name.startswith("torch.") and isinstance(getattr(torch, name.removeprefix("torch."), None), torch.dtype)


def tensors_in(content: Any) -> Iterator[Tensor]:
    """Every tensor in nested containers, each container once, however often it is named."""
    waiting, seen = [content], set()
    while waiting:
        node = waiting.pop()
        if isinstance(node, Tensor):
            yield node
        elif isinstance(node, (dict, list, tuple, set)) and id(node) not in seen:
            seen.add(id(node))
            waiting += [*node.keys(), *node.values()] if isinstance(node, dict) else node


def _check_tensor(tensor: Tensor, size: int) -> None:
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"a tensor of {list(tensor.shape)} is not a dense one on the CPU ({tensor.layout})")
    stored, shown = tensor.untyped_storage().nbytes(), tensor.numel() * tensor.element_size()
    if shown > stored or stored > size:
        raise ValueError(
            f"a tensor of {list(tensor.shape)} takes {shown:,} bytes and {min(stored, size):,} are in the file: if you "
            "trust the file, make its tensors contiguous and save it again"
        )
