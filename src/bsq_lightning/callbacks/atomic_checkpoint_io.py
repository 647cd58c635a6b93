"""Checkpoints that are whole or absent, and that are read without executing anything."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from bsq_lightning.files import write_whole


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Reads a checkpoint of ours, to the CPU, with ``weights_only``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, holds more than tensors and plain containers, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds objects that would have to be executed "
            f"to be loaded, which is refused ({type(error).__name__}: {str(error).splitlines()[0][:200]})"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "stage", "epoch"} <= content.keys():
        raise ValueError(f"{path} is not a checkpoint of bsq_lightning (no state_dict, stage and epoch in it)")
    return content


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer stages files in another file system's /tmp; this one renames beside the target."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_whole(path, buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(path)
