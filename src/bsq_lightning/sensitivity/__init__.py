"""What bits are worth where: cost tables of a trained network, and the best scheme under a budget."""

from bsq_lightning.sensitivity.allocation import Allocation, Surroundings, allocate
from bsq_lightning.sensitivity.base import CostTable, Sensitivity, squared_errors
from bsq_lightning.sensitivity.fisher import Fisher
from bsq_lightning.sensitivity.hutchinson import Hutchinson
from bsq_lightning.sensitivity.measured import Measured
from bsq_lightning.sensitivity.water_filling import WaterFilling

__all__ = [
    "Allocation",
    "CostTable",
    "Fisher",
    "Hutchinson",
    "Measured",
    "Sensitivity",
    "Surroundings",
    "WaterFilling",
    "allocate",
    "squared_errors",
]
