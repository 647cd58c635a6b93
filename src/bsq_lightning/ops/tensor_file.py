"""Tensors and metadata as the bytes of a safetensors file, the same bytes every time."""

import json
import struct
from collections.abc import Mapping

from safetensors.torch import save
from torch import Tensor


def tensor_file(arrays: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """What ``safetensors`` writes, with the metadata in order of its keys: its own order is another in every process,
    so that two equal files would have different checksums.

    Args:
        arrays: contiguous, by name.
        metadata: text by name.

    Example:
        >>> import torch
        >>> one, other = (tensor_file({"w": torch.ones(2)}, {"b": "2", "a": "1"}) for _ in range(2))
        >>> one == other, one[8:41]
        (True, b'{"__metadata__":{"a":"1","b":"2"}')
    """
    content = save(dict(arrays), dict(metadata))
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    ordered = {**header, "__metadata__": dict(sorted(metadata.items()))}
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)  # what follows is aligned
    return struct.pack("<Q", len(text)) + text + content[8 + length :]
