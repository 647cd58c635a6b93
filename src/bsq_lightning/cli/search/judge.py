"""Which networks a search must not deliver, however small they are."""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from bsq_lightning.cli.chance import chance_of
from bsq_lightning.ops.dead_path import cutting_layers


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
        """Judges a finished run, from its ``summary.json``."""
        return chance_of(summary)
