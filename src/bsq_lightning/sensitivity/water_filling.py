"""Bits flow to where rounding costs most: the allocation of ``allocate``, again and again while the network trains."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bsq_lightning.quantizers import WeightQuantizer
from bsq_lightning.quantizers.allocated import AllocatedQuantizer
from bsq_lightning.quantizers.damage import Damage, RoundingDamage
from bsq_lightning.sensitivity.allocation import allocate
from bsq_lightning.sensitivity.base import CostTable, squared_errors

LEAST = 0.05  # of the Fisher estimate: what is left of a curvature whose measured damage is not positive


class WaterFilling:
    """Exchanges bits between layers during the first part of a stage, until the network has so many on average.

    For a layer with real weights u, ``e = W - u`` and G = dL/dW, over the steps since the last exchange: the curvature

        ``h = max( D^m F^(1 - m), F / 20 )``,  ``D = max(mean G.e / mean |e|^2, 0)``,  ``F = B mean |G|^2 / P``

    is the geometric mean of two estimates of the Hessian's mean eigenvalue along the rounding: D is measured
    (``RoundingDamage``), unbiased and noisy; F, the Fisher information of a batch of B images over P weights, is smooth
    and only proportional to it. It is averaged over the exchanges (``hold``). The bits n of all layers then
    minimise ``sum_l h_l min_s |u_l - Q_n(u_l; s)|^2`` exactly under the mean allowed now, each layer moving by one bit
    at most, its present bits counting ``keep`` times (near ties would swap for ever). The mean allowed falls linearly
    from that at the start to ``mean_bits`` in the first ``ramp`` of the exchanges. No penalty acts on the weights, and
    a layer that loses a bit loses nothing that it has learned.

    Args:
        mean_bits: bits of magnitude per weight in the end; at least 1.
        exchanges: how many, evenly spread.
        until: the share of the stage's steps in which they are; then the bits are final.
        ramp: the share of the exchanges in which the mean falls.
        measured: m, the share of the measured damage: 0 is the Fisher information alone, 1 the damage alone.
        hold: weight of the old curvature in the new.
        keep: cost of a layer's present bits, relative to the others.
        bits: those that a layer may have, without a gap.

    Raises:
        ValueError: one of them is out of range.

    Example:
        >>> WaterFilling(mean_bits=1.5, exchanges=30, until=0.25).interval(steps=3120)
        26
    """

    def __init__(
        self,
        mean_bits: float,
        exchanges: int = 30,
        until: float = 0.25,
        ramp: float = 0.4,
        measured: float = 0.5,
        hold: float = 0.8,
        keep: float = 0.7,
        bits: Sequence[int] = (1, 2, 3, 4, 5, 6, 7, 8),
    ) -> None:
        if isinstance(mean_bits, bool) or not isinstance(mean_bits, (int, float)) or not 1 <= mean_bits <= 16:
            raise ValueError(f"quant.mean_bits is a number of bits per weight from 1 to 16, not {mean_bits!r}")
        if isinstance(exchanges, bool) or not isinstance(exchanges, int) or exchanges < 1:
            raise ValueError(f"quant.exchanges is a positive whole number, not {exchanges!r}")
        for name, share in {"quant.until": until, "quant.ramp": ramp, "keep": keep}.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} is a share, above 0 and at most 1, not {share!r}")
        if isinstance(measured, bool) or not isinstance(measured, (int, float)) or not 0 <= measured <= 1:
            raise ValueError(f"quant.measured is a share, from 0 to 1, not {measured!r}")
        if not 0 <= hold < 1:
            raise ValueError(f"hold is a share, below 1, not {hold!r}")
        if list(bits) != list(range(bits[0], bits[-1] + 1)) or bits[0] < 1:
            raise ValueError(f"bits are whole numbers from 1 without a gap, not {list(bits)}")
        self.mean_bits, self.exchanges, self.until, self.ramp = float(mean_bits), exchanges, until, ramp
        self.measured, self.hold, self.keep, self.bits = measured, hold, keep, tuple(bits)
        self.start: float | None = None
        self.curvature: dict[str, float] = {}
        self._mark: dict[str, list[float]] = {}

    def interval(self, steps: int) -> int:
        """Optimizer steps between two exchanges, in a stage of so many."""
        return int(self.until * steps) // self.exchanges

    def check(self, quantizers: Mapping[str, WeightQuantizer], steps: int) -> None:
        """Before training.

        Args:
            quantizers: of the network.
            steps: of the stage.

        Raises:
            ValueError: quantizers that cannot change their bits as this needs it, a stage too short for the exchanges,
                or exchanges too few to reach the target.
        """
        other = [name for name, quantizer in quantizers.items() if not isinstance(quantizer, AllocatedQuantizer)]
        if other:
            raise ValueError(f"water filling needs tensors whose bits can change, as those of quant=water_filling; "
                             f"{other[0]} has {type(quantizers[other[0]]).__name__}")  # fmt: skip
        if self.interval(steps) < 1:
            raise ValueError(
                f"the first {self.until:g} of {steps} steps hold no {self.exchanges} exchanges of bits: lower "
                "quant.exchanges, raise quant.until or train longer"
            )
        beyond = [name for name, quantizer in quantizers.items() if quantizer.precision not in self.bits]
        if beyond:
            raise ValueError(
                f"layer {beyond[0]} starts at {quantizers[beyond[0]].precision} bits; water filling knows layers of "
                f"{self.bits[0]} to {self.bits[-1]}: lower quant.precision, or the bits of its scheme"
            )
        start, falling = _mean_bits(quantizers), int(self.ramp * self.exchanges)
        if start < self.mean_bits:
            raise ValueError(f"quant.mean_bits={self.mean_bits:g} is above the {start:g} that the network starts with")
        if start - self.mean_bits > max(1, falling):
            raise ValueError(
                f"from {start:g} to {self.mean_bits:g} mean bits in {falling} exchanges, of one bit a layer: raise "
                "quant.exchanges or quant.ramp"
            )

    def exchange(
        self, number: int, quantizers: Mapping[str, WeightQuantizer], damage: RoundingDamage, images: int
    ) -> dict[str, int]:
        """The bits of the layers that change, at exchange ``number`` of 1 to ``exchanges``.

        Args:
            number: which exchange it is.
            quantizers: of the network, ``AllocatedQuantizer``.
            damage: measured at every step.
            images: B, of one step on all devices.
        """
        if self.start is None:
            self.start = _mean_bits(quantizers)
        sizes = {name: math.prod(quantizer.shape) for name, quantizer in quantizers.items()}
        for name, measured in damage.since(self._mark).items():
            old, new = self.curvature.get(name), _curvature(measured, sizes[name], images, self.measured)
            self.curvature[name] = new if old is None else self.hold * old + (1 - self.hold) * new
        self._mark = damage.mark()
        now = {name: quantizer.precision for name, quantizer in quantizers.items()}
        table = self._table(quantizers, now)
        falling = max(1, int(self.ramp * self.exchanges))
        goal = self.start + (self.mean_bits - self.start) * min(1.0, number / falling)
        least = sum(size * max(self.bits[0], now[name] - 1) for name, size in sizes.items()) / sum(sizes.values())
        found = allocate(table, max(goal, least)).scheme.precisions()
        return {name: int(bits) for name, bits in found.items() if bits != now[name]}

    def _table(self, quantizers: Mapping[str, WeightQuantizer], now: Mapping[str, int]) -> CostTable:
        """Costs of the bits that each layer can go to; infinite for all others."""
        costs = torch.full((len(now), len(self.bits)), math.inf, dtype=torch.float64)
        for row, (name, quantizer) in zip(costs, quantizers.items(), strict=True):
            reach = [n for n in self.bits if abs(n - now[name]) <= 1]
            relaxed = quantizer.relaxed()
            assert relaxed is not None
            errors, _ = squared_errors([(name, relaxed)], reach)
            for n, error in zip(reach, errors[0].tolist(), strict=True):
                row[self.bits.index(n)] = self.curvature[name] * error * (self.keep if n == now[name] else 1)
        sizes = tuple(math.prod(quantizer.shape) for quantizer in quantizers.values())
        return CostTable(tuple(now), sizes, self.bits, costs, torch.ones_like(costs))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"start": self.start, "curvature": dict(self.curvature), "mark": dict(self._mark)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict()``."""
        self.start, self.curvature, self._mark = state["start"], dict(state["curvature"]), dict(state["mark"])


def _mean_bits(quantizers: Mapping[str, WeightQuantizer]) -> float:
    sizes = [math.prod(quantizer.shape) for quantizer in quantizers.values()]
    bits = [quantizer.precision for quantizer in quantizers.values()]
    return sum(size * n for size, n in zip(sizes, bits, strict=True)) / sum(sizes)


def _curvature(measured: Damage, size: int, images: int, share: float) -> float:
    fisher = images * measured.gradient / size
    direct = measured.product / max(measured.error, 1e-12)
    return max(max(direct, 0.0) ** share * fisher ** (1 - share), LEAST * fisher)
