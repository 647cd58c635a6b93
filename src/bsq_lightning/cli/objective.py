"""What a sweeper that learns from results, such as Optuna's, is told of a run."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from omegaconf import DictConfig

ACCURACIES = ("val/acc", "val/top5", "test/acc", "test/top5")
#: The figures of ``summary.json`` that can be an objective, by their dotted place.
FIGURES = (
    *(f"accuracy.{when}.{name}" for when, name in product(("final", "before_finetune", "float"), ACCURACIES)),
    *(f"sizes.{counting}.{name}" for counting, name in product(("paper", "signed", "model"), ("bits", "compression"))),
    "mean_precision",
    "gbops",
)


def check_objective(cfg: DictConfig) -> None:
    """Before any training.

    Raises:
        ValueError: a figure that no summary has, or one of validation images where none are held back.
    """
    names = _names(cfg.get("objective"))
    unknown = [name for name in names if name not in FIGURES]
    if unknown or not names:
        raise ValueError(
            f"objective is a list of figures of summary.json, {', '.join(FIGURES)}; not {unknown or 'empty'}"
        )
    if cfg.data.get("val_split") == 0 and any(".val/" in name for name in names):
        raise ValueError(
            "objective asks for validation images, but data.val_split=0 holds none back: set data.val_split, or choose "
            "by test images with objective=[accuracy.final.test/acc,sizes.model.bits] and say so beside the result"
        )


def objective(names: str | Sequence[str] | None, summary: Mapping[str, Any]) -> float | list[float] | None:
    """The figures of a run's summary, one alone as a number; None where the run has not got them.

    Example:
        >>> summary = {"accuracy": {"final": {"val/acc": 0.9}}, "sizes": {"model": {"bits": 800}}}
        >>> objective(["accuracy.final.val/acc", "sizes.model.bits"], summary)
        [0.9, 800.0]
        >>> objective("accuracy.final.val/acc", summary)
        0.9
    """
    values = []
    for name in _names(names):
        value: Any = summary
        for key in name.split("."):
            value = value.get(key) if isinstance(value, Mapping) else None
        if value is None:
            return None
        values.append(float(value))
    return values[0] if len(values) == 1 else values or None


def _names(names: str | Sequence[str] | None) -> list[str]:
    return [names] if isinstance(names, str) else [str(name) for name in names or ()]
