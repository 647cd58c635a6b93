"""Bits flow to where rounding costs most: the allocation of ``allocate``, again and again while the network trains."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bsq_lightning.quantizers import WeightQuantizer
from bsq_lightning.quantizers.allocated import AllocatedQuantizer
from bsq_lightning.quantizers.damage import Damage, RoundingDamage
from bsq_lightning.sensitivity.allocation import allocate
from bsq_lightning.sensitivity.base import CostTable, row_errors

LEAST = 0.05  # of the Fisher estimate: what is left of a curvature whose measured damage is not positive


class WaterFilling:
    """Exchanges bits between layers during the first part of a stage, until the network has so many on average.

    What has bits of its own is a layer (``AllocatedQuantizer``) or a filter (``FilterQuantizer``): a row. For a row
    with real weights u, ``e = W - u`` and G = dL/dW, over the steps since the last exchange: the curvature

        ``h = max( D^m F^(1 - m), F / 20 )``,  ``D = max(mean G.e / mean |e|^2, 0)``,  ``F = B mean |G|^2 / P``

    is the geometric mean of two estimates of the Hessian's mean eigenvalue along the rounding: D is measured
    (``RoundingDamage``), unbiased and noisy; F, the Fisher information of a batch of B images over P weights, is smooth
    and only proportional to it. It is averaged over the exchanges (``hold``). The bits n of all rows then
    minimise ``sum_r h_r min_s |u_r - Q_n(u_r; s)|^2`` exactly under the mean allowed now, each row moving by one bit
    at most, its present bits counting ``keep`` times (near ties would swap for ever). The mean allowed falls linearly
    from that at the start to ``mean_bits`` in the first ``ramp`` of the exchanges. No penalty acts on the weights, and
    a row that loses a bit loses nothing that it has learned. A row at 0 bits keeps the curvature that it had, for
    nothing can be measured there, and no layer loses its last row.

    Args:
        mean_bits: bits of magnitude per weight in the end; below 1 only where rows may have none.
        exchanges: how many, evenly spread.
        until: the share of the stage's steps in which they are; then the bits are final.
        ramp: the share of the exchanges in which the mean falls.
        measured: m, the share of the measured damage: 0 is the Fisher information alone, 1 the damage alone.
        hold: weight of the old curvature in the new.
        keep: cost of a layer's present bits, relative to the others.
        bits: those that a row may have, without a gap; from 0 where rows are filters.

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
        if isinstance(exchanges, bool) or not isinstance(exchanges, int) or exchanges < 1:
            raise ValueError(f"quant.exchanges is a positive whole number, not {exchanges!r}")
        for name, share in {"quant.until": until, "quant.ramp": ramp, "keep": keep}.items():
            if not 0 < share <= 1:
                raise ValueError(f"{name} is a share, above 0 and at most 1, not {share!r}")
        if isinstance(measured, bool) or not isinstance(measured, (int, float)) or not 0 <= measured <= 1:
            raise ValueError(f"quant.measured is a share, from 0 to 1, not {measured!r}")
        if not 0 <= hold < 1:
            raise ValueError(f"hold is a share, below 1, not {hold!r}")
        if list(bits) != list(range(bits[0], bits[-1] + 1)) or bits[0] < 0:
            raise ValueError(f"bits are whole numbers from 0 or 1 without a gap, not {list(bits)}")
        number = isinstance(mean_bits, (int, float)) and not isinstance(mean_bits, bool)
        if not number or not bits[0] <= mean_bits <= 16 or not mean_bits:
            low = f"from {bits[0]}" if bits[0] else "above 0 and up"
            raise ValueError(f"quant.mean_bits is a number of bits per weight {low} to 16, not {mean_bits!r}")
        self.mean_bits, self.exchanges, self.until, self.ramp = float(mean_bits), exchanges, until, ramp
        self.measured, self.hold, self.keep, self.bits = measured, hold, keep, tuple(bits)
        self.start: float | None = None
        self.curvature: dict[str, Tensor] = {}  # [rows]
        self._mark: dict[str, Tensor] = {}

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
        rows = _rows(quantizers)
        if self.interval(steps) < 1:
            raise ValueError(
                f"the first {self.until:g} of {steps} steps hold no {self.exchanges} exchanges of bits: lower "
                "quant.exchanges, raise quant.until or train longer"
            )
        beyond = [name for name, row in rows.items() if not set(row.row_bits()) <= set(self.bits)]
        if beyond:
            raise ValueError(
                f"layer {beyond[0]} starts at {quantizers[beyond[0]].precision} bits; water filling knows layers of "
                f"{self.bits[0]} to {self.bits[-1]}: lower quant.precision, or the bits of its scheme"
            )
        start, falling = _mean_bits(rows), int(self.ramp * self.exchanges)
        if start < self.mean_bits:
            raise ValueError(f"quant.mean_bits={self.mean_bits:g} is above the {start:g} that the network starts with")
        least = sum(row.rows().shape[1] for row in rows.values()) / sum(math.prod(row.shape) for row in rows.values())
        if self.mean_bits < least:
            raise ValueError(
                f"quant.mean_bits={self.mean_bits:g} is below {least:.3g}, which one bit for one filter of each layer "
                "takes"
            )
        if start - self.mean_bits > max(1, falling):
            raise ValueError(
                f"from {start:g} to {self.mean_bits:g} mean bits in {falling} exchanges, of one bit each: raise "
                "quant.exchanges or quant.ramp"
            )

    def exchange(
        self, number: int, quantizers: Mapping[str, WeightQuantizer], damage: RoundingDamage, images: int
    ) -> dict[str, int | list[int]]:
        """The bits of the layers that change, at exchange ``number`` of 1 to ``exchanges``; row by row where there are
        several.

        Args:
            number: which exchange it is.
            quantizers: of the network, ``AllocatedQuantizer``.
            damage: measured at every step.
            images: B, of one step on all devices.
        """
        rows = _rows(quantizers)
        if self.start is None:
            self.start = _mean_bits(rows)
        for name, measured in damage.since(self._mark).items():
            new = _curvature(measured, rows[name], images, self.measured)
            if name in self.curvature:
                new = self.hold * self.curvature[name] + (1 - self.hold) * new
                new = torch.where(torch.tensor(rows[name].row_bits()) > 0, new, self.curvature[name])
            self.curvature[name] = new
        self._mark = damage.mark()
        if rows.keys() - self.curvature.keys():  # every step so far was skipped (a loss scale that is still sought)
            return {}
        table = self._table(rows)
        falling = max(1, int(self.ramp * self.exchanges))
        goal = self.start + (self.mean_bits - self.start) * min(1.0, number / falling)
        lowest = [self.bits[int(place)] for place in table.costs.isfinite().int().argmax(1)]
        least = sum(size * n for size, n in zip(table.sizes, lowest, strict=True)) / sum(table.sizes)
        found = iter(allocate(table, max(goal, least)).scheme.layers)
        chosen = {name: [int(next(found).precision) for _ in row.row_bits()] for name, row in rows.items()}
        return {
            name: bits if len(bits) > 1 else bits[0] for name, bits in chosen.items() if bits != rows[name].row_bits()
        }

    def _table(self, rows: Mapping[str, AllocatedQuantizer]) -> CostTable:
        """Costs of the bits that each row can go to; infinite for all others."""
        names, sizes, costs = [], [], []
        for name, quantizer in rows.items():
            weights, now = quantizer.rows(), torch.tensor(quantizer.row_bits())
            cost = torch.full((len(weights), len(self.bits)), math.inf, dtype=torch.float64)
            for place, n in enumerate(self.bits):
                near = (now - n).abs() <= 1
                if bool(near.any()):
                    error, _ = row_errors(weights[near.to(weights.device)], n)
                    cost[near, place] = error * self.curvature[name][near] * torch.where(now[near] == n, self.keep, 1.0)
            if self.bits[0] == 0:  # a layer of zeros may cut the network in two
                last = int((self.curvature[name] * row_errors(weights, 0)[0]).argmax())
                cost[last, 0] = math.inf
                if int(now[last]) == 0:
                    cost[last, 1] = 0.0
            names += [f"{name}[{k}]" for k in range(len(weights))]
            sizes += [weights.shape[1]] * len(weights)
            costs.append(cost)
        together = torch.cat(costs)
        return CostTable(tuple(names), tuple(sizes), self.bits, together, torch.ones_like(together))

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint."""
        curvature, mark = (
            {name: each.tolist() for name, each in part.items()} for part in (self.curvature, self._mark)
        )
        return {"start": self.start, "curvature": curvature, "mark": mark}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict()``, that of before there were rows too."""
        self.start = state["start"]
        curvature, mark = (
            {name: torch.tensor(each, dtype=torch.float64) for name, each in state[part].items()}
            for part in ("curvature", "mark")
        )
        self.curvature = {name: each.reshape(-1) for name, each in curvature.items()}
        self._mark = {name: each for name, each in mark.items() if each.dim() == 2}


def _rows(quantizers: Mapping[str, WeightQuantizer]) -> dict[str, AllocatedQuantizer]:
    """Raises ValueError for a quantizer whose bits cannot change as this needs it."""
    rows = {}
    for name, quantizer in quantizers.items():
        if not isinstance(quantizer, AllocatedQuantizer):
            raise ValueError(f"water filling needs tensors whose bits can change, as those of quant=water_filling; "
                             f"{name} has {type(quantizer).__name__}")  # fmt: skip
        rows[name] = quantizer
    return rows


def _mean_bits(rows: Mapping[str, AllocatedQuantizer]) -> float:
    each = [(math.prod(row.shape), row.row_bits()) for row in rows.values()]
    return sum(size * sum(bits) / len(bits) for size, bits in each) / sum(size for size, _ in each)


def _curvature(measured: Damage, row: AllocatedQuantizer, images: int, share: float) -> Tensor:
    """h of each row, float64 ``[R]``."""
    count = len(row.row_bits())
    product, error, gradient = (
        each.double().reshape(count, -1).sum(1) for each in (measured.product, measured.error, measured.gradient)
    )
    fisher = images * gradient * count / math.prod(row.shape)
    direct = product / error.clamp_min(1e-12)
    return torch.maximum(direct.clamp_min(0) ** share * fisher ** (1 - share), LEAST * fisher)
