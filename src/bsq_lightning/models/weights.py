"""Float weights from a file into a network: plain tensors only, every name and shape checked."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor, nn

from bsq_lightning.plain_tensors import load_plain

# Our checkpoints keep the network under this name, beside tensors that are not part of it.
OWN_PREFIX = "network.net."
# What wrappers (DataParallel, other people's Lightning modules) put before every name.
WRAPPER_PREFIXES = ("module.", "net.", "model.")


def load_float_weights(net: nn.Module, path: str | Path) -> None:
    """Loads a file of float weights into ``net``, in place and strictly.

    The file holds a state dict, or a mapping with one under ``state_dict``. A prefix that a wrapper put before all
    names (``module.``, ``net.``, ``model.``) is taken off; from a checkpoint of ours only ``network.net.*`` is taken.

    Args:
        net: a network with the parameter and buffer names and shapes of the file.
        path: the file, as ``torch.save`` or safetensors (``*.safetensors``) wrote it. Nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is damaged, holds more than plain tensors, or does not fit ``net``.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file of float weights at {path}: check model.weights, or set it to null")
    state = _strip_prefix(_read_state(path), set(net.state_dict()))
    differences = _differences(net.state_dict(), state)
    if differences:
        raise ValueError(
            f"the weights in {path} do not fit {type(net).__name__}: {'; '.join(differences)}. "
            "Choose the model (its depth, shortcut and number of classes) that these weights were trained with."
        )
    net.load_state_dict(state)


def _read_state(path: Path) -> dict[str, Tensor]:
    content: Any
    try:
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = load_plain(path, mapped=True)  # read only where it fits
    except Exception as error:  # damaged bytes make torch fail in many ways, and all mean the same to the reader
        reason = (str(error).splitlines() or [""])[0][:300]
        raise ValueError(
            f"cannot read float weights from {path} ({type(error).__name__}: {reason}). Only plain tensors are read "
            "and no code in a file is ever run: the file is cut short, or must be saved again as "
            "torch.save(net.state_dict(), path)."
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if isinstance(content, Mapping) and (own := {k: v for k, v in content.items() if str(k).startswith(OWN_PREFIX)}):
        content = own  # beside them are the quantizers' own, which need not be tensors
    is_state = isinstance(content, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items()
    )
    if not is_state or not content:
        raise ValueError(
            f"{path} holds no state dict: only plain tensors by name are read, directly or under 'state_dict'. "
            "Save it as torch.save(net.state_dict(), path)."
        )
    return dict(content)


def _strip_prefix(state: dict[str, Tensor], expected: set[str]) -> dict[str, Tensor]:
    if expected & state.keys():  # the names fit as they are; a network may itself have a child called "net"
        return state
    own = {name.removeprefix(OWN_PREFIX): value for name, value in state.items() if name.startswith(OWN_PREFIX)}
    if own:
        return own
    for prefix in WRAPPER_PREFIXES:
        if all(name.startswith(prefix) for name in state):
            return {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _differences(expected: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """What does not fit, in words: one entry for each kind of difference."""
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in given and given[name].shape != tensor.shape
    ]
    kinds = {
        "missing": [name for name in expected if name not in given],
        "unexpected": [name for name in given if name not in expected],
        "of another shape": shapes,
    }
    return [
        f"{len(names)} {kind} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    ]
