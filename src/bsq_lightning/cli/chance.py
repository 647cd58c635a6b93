"""Whether the network of a finished run knows anything: no search, and no study, takes one that guesses."""

from collections.abc import Mapping
from typing import Any

from scipy.stats import binom

#: A network that guesses is taken for one that knows something as seldom as this.
LEVEL = 1e-3


def at_chance(accuracy: float, images: int, classes: int) -> bool:
    """Whether a network that guesses is right as often at least once in a thousand: binomial, 1 / ``classes``.

    Example:
        >>> at_chance(0.25, 120, 4), at_chance(0.35, 120, 4), at_chance(0.45, 120, 4)
        (True, True, False)
    """
    return bool(binom.sf(round(accuracy * images) - 1, images, 1 / classes) >= LEVEL)


def chance_of(summary: Mapping[str, Any]) -> str:
    """Why the network of a ``summary.json`` is taken for one that guesses; empty where it is not. The test set says
    only whether the network is broken: among those that are not, it selects nothing.

    Example:
        >>> chance_of({"accuracy": {"final": {"test/acc": 0.25}}, "data": {"test": 120, "classes": 4}})
        'at chance: 25.00 % of 120 test images, 4 classes'
    """
    accuracy, data = summary["accuracy"]["final"]["test/acc"], summary.get("data") or {}
    known = "test" in data and "classes" in data  # earlier versions did not say
    if known and at_chance(accuracy, data["test"], data["classes"]):
        return f"at chance: {100 * accuracy:.2f} % of {data['test']} test images, {data['classes']} classes"
    return ""
