"""The budget that a search, or an allocation, stays inside."""

import math
from dataclasses import asdict, dataclass
from typing import Any

from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme


@dataclass(frozen=True)
class Target:
    """The budget: exactly one of kilobytes (whole model), mean_bits (paper's counting) and gbops.

    Raises:
        ValueError: none or several are given, or one is not positive.
    """

    kilobytes: float | None = None
    mean_bits: float | None = None
    gbops: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in asdict(self).items() if value is not None}
        if len(given) != 1:
            raise ValueError(
                f"give one target: target.kilobytes, target.mean_bits or target.gbops ({len(given)} are given)"
            )
        if not all(value > 0 and math.isfinite(value) for value in given.values()):
            raise ValueError(f"the target must be a positive number: {given}")

    @property
    def unit(self) -> str:
        return {"kilobytes": "kB", "mean_bits": "bits", "gbops": "GBOPs"}[self.name]

    @property
    def value(self) -> float:
        return getattr(self, self.name)

    @property
    def name(self) -> str:
        """Which of the three it is."""
        return next(name for name, value in asdict(self).items() if value is not None)

    def size(self, scheme: Scheme) -> float:
        """The size of a scheme in the target's unit."""
        size = {"kilobytes": scheme.bits("model") / 8000, "mean_bits": scheme.mean_precision, "gbops": scheme.gbops}
        return float(size[self.name] or 0.0)

    def check(self, start: Scheme) -> None:
        """Raises ValueError where not even a network without a single bit would be inside."""
        floor = self.size(start.at(0))
        if floor >= self.value:
            raise ValueError(
                f"the target of {self.value:g} {self.unit} is out of reach: what stays float alone takes "
                f"{floor:.4g} {self.unit} (batch norm, shortcuts, scales)"
            )

    def adjusted(self, folder: RunFolder) -> list[dict[str, Any]]:
        """The adjustments so far of the stage that the search is about: the first that is adjusted."""
        rows = folder.adjustments()
        return [row for row in rows if row.get("stage") == rows[0].get("stage")]

    def after(self, row: dict[str, Any]) -> float:
        """The size after an adjustment."""
        key = {"kilobytes": "kilobytes_after", "mean_bits": "mean_precision_after", "gbops": "gbops_after"}[self.name]
        return row[key]
