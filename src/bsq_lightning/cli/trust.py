"""What the config of a run folder may name: a stranger's ``config.yaml`` chooses among parts, it does not run code.

``resume=`` and ``evaluate`` build what the folder's config names. Without more said, that is a part of this package or
of a library: an optimizer, a layer, a model, a metric. Everything else has to be trusted by whoever starts the
command: ``trust=[mypackage]``.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

#: Rooms of this package that hold parts; no command and no writer of files is in them.
ROOMS = (
    "models", "quantizers", "regularizers", "callbacks", "data", "loggers", "post_training", "exporters",
    "sensitivity", "reference_2021",
)  # fmt: skip
#: Exact names that are always allowed.
NAMES = ("lightning.Trainer", "lightning.pytorch.Trainer", "timm.create_model", "datetime.timedelta")


def _bases(*names: str) -> Callable[[Any, str], bool]:
    def fits(found: Any, path: str) -> bool:
        return inspect.isclass(found) and issubclass(found, tuple(_located(name) for name in names))

    return fits


def _model(found: Any, path: str) -> bool:
    """A network, or a function that builds one; not what downloads, saves or uploads."""
    if path.startswith("timm."):
        return _bases("torch.nn.Module")(found, path) or bool(_located("timm.models.is_model")(path.rpartition(".")[2]))
    builders = _located("torchvision.models.list_models")()
    return _bases("torch.nn.Module")(found, path) or getattr(found, "__name__", "").lower() in builders


def _part(found: Any, path: str) -> bool:
    return inspect.isclass(found) or path.startswith(
        ("bsq_lightning.models.", "bsq_lightning.quantizers.", "bsq_lightning.reference_2021.")
    )


#: Where a target may be, and what it must be there.
PLACES: dict[str, Callable[[Any, str], bool]] = {
    **{f"bsq_lightning.{room}": _part for room in ROOMS},
    "lightning.pytorch.callbacks": _bases("lightning.pytorch.callbacks.Callback"),
    "lightning.pytorch.strategies": _bases("lightning.pytorch.strategies.Strategy"),
    "lightning.pytorch.loggers": _bases("lightning.pytorch.loggers.Logger"),
    "torch.optim": _bases("torch.optim.Optimizer", "torch.optim.lr_scheduler.LRScheduler"),
    "torch.nn": _bases("torch.nn.Module"),
    "torchvision.models": _model,
    "torchvision.transforms.v2": _bases("torchvision.transforms.v2.Transform"),
    "timm.models": _model,
    "torchmetrics": _bases("torchmetrics.Metric"),
}


def check_settled(config: Any, path: Path) -> None:
    """Refuses a ``config.yaml`` that reads something when it is used: a run writes its own resolved.

    Raises:
        ValueError: an interpolation, which could bring in a variable of this environment; the message names the key.
    """
    for key, value in _values(config):
        if isinstance(value, str) and "${" in value:
            raise ValueError(f"{path}: {key} is {value!r}, which a run would have resolved: put its value there")


def check_targets(config: Any, path: Path, trusted: Sequence[str] = ()) -> None:
    """Refuses a config that names what is neither a known part nor of a trusted package.

    Args:
        config: plain containers, every value resolved.
        path: the file it is from.
        trusted: packages, or dotted paths in them.

    Raises:
        ValueError: the first such target, with its place in the config and the remedy.
    """
    for key, target in _values(config):
        if key.rpartition(".")[2] != "_target_":
            continue
        if not isinstance(target, str):
            raise ValueError(f"{path}: {key} is no name but {type(target).__name__}")
        if not _allowed(target, trusted):
            package = target.partition(".")[0]
            raise ValueError(
                f"{path}: {key} is {target}, which is no part that a run is made of, and the file may be a stranger's. "
                f"If you know this code and the folder, add trust=[{package}]"
            )


def trusted_packages(value: Any) -> list[str]:
    """The packages of ``trust=``: a list, or one name.

    Raises:
        ValueError: something else.
    """
    names = [value] if isinstance(value, str) else list(value or [])
    if not all(isinstance(name, str) and all(part.isidentifier() for part in name.split(".")) for name in names):
        raise ValueError(f"trust={value} is no list of packages: give for example trust=[mypackage]")
    return names


def own_packages(config: Any) -> list[str]:
    """The packages beyond the known parts that a user's own config names, for a command that resumes on its behalf."""
    targets = [value for key, value in _values(config) if key.rpartition(".")[2] == "_target_"]
    return sorted({str(target).partition(".")[0] for target in targets if not _allowed(str(target), ())})


def _values(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every value with its dotted place; a ``_target_`` also where it is a container."""
    if isinstance(node, (dict, list)):
        for key, value in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_":
                yield f"{prefix}{key}", value
            yield from _values(value, f"{prefix}{key}.") if key != "_target_" or not isinstance(value, str) else ()
    else:
        yield prefix.removesuffix("."), node


def _allowed(target: str, trusted: Sequence[str]) -> bool:
    if not all(part.isidentifier() for part in target.split(".")):
        return False
    if target in NAMES or any(target == name or target.startswith(f"{name}.") for name in trusted):
        return True
    place = next((place for place in PLACES if target.startswith(f"{place}.")), None)
    if place is None:
        return False
    # Only now, that it is in a place of parts, is anything imported. What a module has imported itself is not its own:
    # torch.optim.optimizer.os.system has the right beginning.
    found = _located(target)
    home = getattr(found, "__module__", None) or ""
    package = place.partition(".")[0]
    at_home = home == place or home.startswith((f"{place}.", "pytorch_lightning." if package == "lightning" else "\0"))
    return at_home and (inspect.isclass(found) or inspect.isfunction(found)) and PLACES[place](found, target)


def _located(path: str) -> Any:
    """What a dotted path names, through modules and their own attributes; None where there is nothing."""
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(parts[:end]))
        except ImportError:
            continue
        for part in parts[end:]:
            found = getattr(found, part, None)
        return found
    return None
