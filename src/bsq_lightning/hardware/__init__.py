"""What a quantized network costs on a given piece of hardware."""

from bsq_lightning.hardware.cycles import (
    ENERGY_IS_PLACEHOLDER,
    Array,
    Cost,
    Energy,
    baselines,
    compare,
    layer_cycles,
    mean_shifts,
    network_cost,
    shifts_of,
)

__all__ = [
    "ENERGY_IS_PLACEHOLDER",
    "Array",
    "Cost",
    "Energy",
    "baselines",
    "compare",
    "layer_cycles",
    "mean_shifts",
    "network_cost",
    "shifts_of",
]
