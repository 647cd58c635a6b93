"""Which networks a search must not deliver, however small they are."""

from dataclasses import dataclass, field
from typing import Any

from scipy.stats import binom
from torch import nn

from bsq_lightning.ops.dead_path import cutting_layers

#: A network that guesses is taken for one that knows something as seldom as this.
LEVEL = 1e-3


def at_chance(accuracy: float, images: int, classes: int) -> bool:
    """Whether a network that guesses is right as often at least once in a thousand: binomial, 1 / ``classes``.

    Example:
        >>> at_chance(0.25, 120, 4), at_chance(0.35, 120, 4), at_chance(0.45, 120, 4)
        (True, True, False)
    """
    return bool(binom.sf(round(accuracy * images) - 1, images, 1 / classes) >= LEVEL)


@dataclass(frozen=True)
class Judge:
    """Says why a network is refused; empty strings where it is not.

    Args:
        net: the architecture; its weights do not matter.
        image_size: side of the images.
    """

    net: nn.Module
    image_size: int
    _known: dict[tuple[str, ...], list[str]] = field(default_factory=dict)  # it is asked every second

    def of_bits(self, bits: dict[str, int | float]) -> str:
        """Judges the bits of all layers, by name; they may still shrink, for no layer comes back from 0."""
        empty = tuple(name for name, precision in bits.items() if precision == 0)
        if empty not in self._known:
            self._known[empty] = cutting_layers(self.net, empty, self.image_size)
        cut = self._known[empty]
        return f"dead path: {', '.join(cut)} at 0 bits, and nothing goes around" if cut else ""

    def of_summary(self, summary: dict[str, Any]) -> str:
        """Judges a finished run, from its ``summary.json``. The test set says only whether the network is broken:
        among those that are not, it selects nothing."""
        accuracy, data = summary["accuracy"]["final"]["test/acc"], summary["data"]
        if at_chance(accuracy, data["test"], data["classes"]):
            return f"at chance: {100 * accuracy:.2f} % of {data['test']} test images, {data['classes']} classes"
        return ""
