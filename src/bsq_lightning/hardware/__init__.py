"""What a quantized network costs on a given piece of hardware."""

from bsq_lightning.hardware.cycles import Array, Cost, Energy, baselines, compare, layer_cycles, network_cost, shifts_of

__all__ = ["Array", "Cost", "Energy", "baselines", "compare", "layer_cycles", "network_cost", "shifts_of"]
