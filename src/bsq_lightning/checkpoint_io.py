"""Checkpoints that are whole or absent, and that are read without executing anything."""

import io
import logging
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from bsq_lightning.files import copy_whole, write_whole
from bsq_lightning.ops.tensor_bytes import tensor_bytes
from bsq_lightning.plain_tensors import load_plain, tensors_in

log = logging.getLogger(__name__)
PREVIOUS = "previous.ckpt"
#: What may stand beside a network of one byte: momentum and the like. And bytes of loops, callbacks, random numbers.
_OF_OPTIMIZERS, _OF_LOOPS = 4, 2**24


def load_checkpoint(path: str | Path, mapped: bool = True) -> dict[str, Any]:
    """Reads a checkpoint of ours, to the CPU, with ``weights_only``.

    Args:
        path: the file.
        mapped: leaves its numbers in the file until they are used: ``load_state`` compares sizes before it reads them.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is truncated, holds more than tensors and plain containers, or is no checkpoint.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        content = load_plain(path, mapped)
    except Exception as error:  # torch raises a dozen kinds for a damaged file, some without a word
        first_line = str(error).partition("\n")[0]
        raise ValueError(
            f"{path} cannot be read as a checkpoint: it is damaged, or holds what would be executed to be loaded, or "
            f"would take more memory than the file has, which is refused ({type(error).__name__}: {first_line:.300})"
        ) from error
    if not isinstance(content, dict) or not {"state_dict", "stage", "epoch"} <= content.keys():
        raise ValueError(f"{path} is not a checkpoint of bsq_lightning (no state_dict, stage and epoch in it)")
    return content


def save_weights(module: L.LightningModule, stage: str, path: Path) -> None:
    """Writes a checkpoint of a stage that trains nothing: a state dict, no optimizer and no loop."""
    buffer = io.BytesIO()
    torch.save({"state_dict": module.state_dict(), "stage": stage, "epoch": 0, "global_step": 0}, buffer)
    write_whole(path, buffer.getvalue())


def load_state(module: L.LightningModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Loads a checkpoint into a module.

    Raises:
        ValueError: it is from another architecture; lists the first keys that differ. Or no run has written it, or it
            holds more beside the network than an optimizer keeps.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{path} is from another architecture than the config: {lines[:400]}") from error
    except ValueError as error:
        raise ValueError(f"{path} was not written by a run and is not used: {error}") from error
    network = tensor_bytes(tensors_in(checkpoint["state_dict"]))  # what it needs, as it fits by now
    beside = tensor_bytes(tensors_in({key: value for key, value in checkpoint.items() if key != "state_dict"}))
    if beside > _OF_OPTIMIZERS * network + _OF_LOOPS:
        raise ValueError(
            f"{path} was not written by a run and is not used: beside a network of {network:,} bytes it holds "
            f"{beside:,}, more than any optimizer keeps"
        )


def mend_last(last: Path) -> None:
    """Puts the checkpoint before it in the place of a ``last.ckpt`` that cannot be read, which is kept aside.

    Renaming never leaves half a file, but disks, copies and quotas do. The run then repeats an epoch.

    Raises:
        ValueError: it cannot be read, and the one before it is missing or cannot be read either.
    """
    if not last.exists():
        return
    try:
        load_checkpoint(last)
    except ValueError as error:
        previous = last.with_name(PREVIOUS)
        if not previous.exists():
            raise
        load_checkpoint(previous)
        last.replace(last.with_name("last.ckpt.damaged"))
        copy_whole(previous, last, link=True)
        log.warning("%s. Going on from the checkpoint before it; the damaged file is last.ckpt.damaged", error)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's checkpoint writer stages files in another file system's /tmp; this one renames beside the target.

    What the file held before stays beside it as ``previous.ckpt``.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        path = Path(path)
        if path.exists():
            copy_whole(path, path.with_name(PREVIOUS), link=True)
        write_whole(path, buffer.getvalue())

    def load_checkpoint(self, path: Any, map_location: Any = None, weights_only: bool | None = None) -> dict[str, Any]:
        return load_checkpoint(path, mapped=False)  # the optimizer keeps these, and the file will be replaced
