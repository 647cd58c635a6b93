"""What a ``_target_`` takes: the arguments of its signature, with the types that are annotated."""

import inspect
from functools import cache
from typing import Annotated, Any, Literal, get_type_hints

from hydra._internal.utils import _locate  # as instantiate looks up a target, without a log of its own
from pydantic import Field

from bsq_lightning.cli.settings import words
from bsq_lightning.cli.settings.words import plain

#: Hydra's own keys of a part.
OWN = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
Split = (
    Annotated[int, Field(strict=True, ge=0), words.Words("a number of images from 0 on")]
    | Annotated[float, Field(strict=True, ge=0, lt=1), words.Words("a fraction below 1")]
)
#: Ranges that a signature does not tell, by the class that the target is one of.
RANGES: dict[str, dict[str, Any]] = {
    "torch.optim.Optimizer": {
        "lr": words.NotNegative, "momentum": words.Momentum, "weight_decay": words.NotNegative,
        "dampening": words.NotNegative, "eps": words.NotNegative, "nesterov": words.Bool,
    },
    "torch.optim.lr_scheduler.LRScheduler": {
        "milestones": words.Milestones, "gamma": words.Positive, "T_max": words.PositiveWhole,
        "step_size": words.PositiveWhole, "eta_min": words.NotNegative,
    },
    "bsq_lightning.data.ImageDataModule": {
        "batch_size": words.PositiveWhole, "eval_batch_size": words.PositiveWhole, "val_split": Split,
        "limit_train": words.TwoOrMore | None,
        "seed": words.Seed, "num_workers": words.NotNegativeWhole | None,
    },
    "bsq_lightning.data.DigitsDataModule": {"padding": words.NotNegativeWhole},
    "bsq_lightning.data.ImageFolderDataModule": {
        "image_size": words.PositiveWhole, "resize": words.PositiveWhole,
        "broken_images": Literal["stop", "skip"],
    },
    "bsq_lightning.regularizers.Regularizer": {"alpha": words.NotNegative},
}  # fmt: skip


#: What no stage can use, and what to use instead.
REFUSED = {
    "ReduceLROnPlateau": "it waits for a metric, and rates are functions of the epoch alone, so that a run "
    "resumes bit for bit: use CosineAnnealingLR, MultiStepLR or StepLR",
}


class Signature:
    """The arguments of a target: ``types`` by name, ``is_open`` where there may be others.

    Args:
        path: its dotted path.

    Raises:
        ImportError: there is nothing of this name.
        ModuleNotFoundError: it needs a package that is not installed.
    """

    def __init__(self, path: str) -> None:
        found = _locate(path)
        types, self.is_open = _arguments(found)
        for base, ranges in RANGES.items():
            if inspect.isclass(found) and issubclass(found, _locate(base)):
                types |= {name: kind for name, kind in ranges.items() if name in types or self.is_open}
        self.types = types
        self.refused = REFUSED.get(path.rpartition(".")[2], "")


@cache
def signature(path: str) -> Signature:
    """The signature of a target, looked up once."""
    return Signature(path)


def _arguments(found: Any) -> tuple[dict[str, Any], bool]:
    """Types by name, and whether there may be others, which go on to where nobody can see."""
    if not inspect.isclass(found):
        return _of_function(found)
    types: dict[str, Any] = {}
    for owner in found.__mro__:
        if owner is object:  # nothing is taken, unless __new__ takes it, as that of compiled classes does
            return types, found.__new__ is not object.__new__
        if "__init__" not in vars(owner):
            continue
        own, is_open = _of_function(owner)
        types = {**own, **types}
        # Of our own classes we know that keywords go on to the class above.
        if not is_open or not owner.__module__.startswith("bsq_lightning."):
            return types, is_open
    return types, False


def _of_function(found: Any) -> tuple[dict[str, Any], bool]:
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):  # compiled code
        return {}, True
    types, hints = dict[str, Any](), _hints(found)
    named = [p for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    for parameter in named:
        kind = plain(hints.get(parameter.name, Any))
        types[parameter.name] = kind | None if parameter.default is None and kind is not Any else kind
    return types, any(p.kind is p.VAR_KEYWORD for p in parameters)


def _hints(found: Any) -> dict[str, Any]:
    try:
        return get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except Exception:  # names that exist for type checkers only, and whatever else strangers write there
        return {}
