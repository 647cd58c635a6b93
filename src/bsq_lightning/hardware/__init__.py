"""What a quantized network costs on a given piece of hardware."""

from bsq_lightning.hardware.crossbars import Crossbars, code_bits, input_grids, layer_uses, on_crossbars
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
    "Crossbars",
    "Energy",
    "baselines",
    "code_bits",
    "compare",
    "input_grids",
    "layer_cycles",
    "layer_uses",
    "mean_shifts",
    "network_cost",
    "on_crossbars",
    "shifts_of",
]
