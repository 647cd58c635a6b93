"""Which bits for which layer: the exact optimum of a cost table under a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bsq_lightning.scheme import FLOAT_BITS, PIXEL_BITS, LayerScheme, Scheme
from bsq_lightning.sensitivity.base import CostTable

UNITS = ("mean_bits", "kilobytes", "gbops")


@dataclass(frozen=True)
class Surroundings:
    """What of a network counts in kilobytes and gbops beside the bits of its tensors.

    Args:
        float_parameters: parameters that stay in 32-bit float.
        act_precision: bits of activations, 0 for float.
        macs: multiply-accumulates of each layer for one image, float layers included.
        input_bits: bits of what each layer reads.
        owners: of a layer whose weight is that of another one, that layer: it has the same bits and its own MACs.
    """

    float_parameters: int = 0
    act_precision: int = 0
    macs: Mapping[str, int] | None = None
    input_bits: Mapping[str, int] | None = None
    owners: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Allocation:
    """The best scheme under a budget.

    Args:
        scheme: bits and steps of all tensors.
        predicted: sum of the costs in the table.
        spent: what the scheme takes, in the unit of the budget; at most the budget.
    """

    scheme: Scheme
    predicted: float
    spent: float


def allocate(
    table: CostTable,
    budget: float,
    unit: str = "mean_bits",
    around: Surroundings | None = None,
    fixed: Mapping[str, int] | None = None,
) -> Allocation:
    """Minimises ``sum_l cost_l(n_l)`` under ``sum_l size_l(n_l) <= budget``, exactly.

    A knapsack with one choice a tensor, solved by a dynamic program (``_solve``); sizes are whole numbers, so the
    budget is kept to the bit. Every tensor is free, first and last layers included, unless ``fixed`` names it.

    Args:
        table: costs; an infinite one forbids its choice.
        budget: mean bits of magnitude over the quantized weights; or kilobytes (1000 bytes) of the whole model, signs,
            steps and float parameters included (``Scheme.bits("model")``); or 1e9 bit operations of one image
            (``Scheme.gbops``).
        unit: ``mean_bits``, ``kilobytes`` or ``gbops``.
        around: what else counts; gbops need its ``macs``.
        fixed: bits of tensors that are not free.

    Raises:
        ValueError: a budget below the least possible, which the message says; another unit; a fixed tensor that is not
            in the table; no MACs for gbops.

    Example:
        >>> import torch
        >>> costs = torch.tensor([[9.0, 1.0, 0.0], [1.0, 0.9, 0.8]])
        >>> table = CostTable(("conv", "fc"), (10, 10), (1, 2, 3), costs, torch.ones(2, 3))
        >>> best = allocate(table, budget=2)
        >>> best.scheme.precisions(), best.predicted, best.spent
        ({'conv': 3, 'fc': 1}, 1.0, 2.0)
    """
    around, fixed = around or Surroundings(), fixed or {}
    if unit not in UNITS:
        raise ValueError(f"a budget is in one of {', '.join(UNITS)}, not {unit!r}")
    unknown = [f"{name}={n}" for name, n in fixed.items() if name not in table.names or n not in table.bits]
    if unknown:
        raise ValueError(f"fixed names tensors and bits of the table; it has no {', '.join(unknown)}")
    weights = _sizes(table, unit, around)
    allowed = np.array([[fixed.get(name, n) == n for n in table.bits] for name in table.names])
    allowed &= np.isfinite(np.array(table.costs.tolist()))

    least = [
        min(int(w) for w, free in zip(row, ok, strict=True) if free) for row, ok in zip(weights, allowed, strict=True)
    ]
    limit = _limit(table, budget, unit, around)
    lowest = _scheme(table, [row.index(w) for row, w in zip(weights, least, strict=True)], around)
    if sum(least) > limit or math.isnan(budget):
        raise ValueError(
            f"a budget of {budget:g} {unit.replace('_', ' ')} is too small: the least possible is "
            f"{_spent(lowest, unit):.6g}, with {min(table.bits)} bit{'s' * (min(table.bits) != 1)} for every tensor"
            + (" that is not fixed" if fixed else "")
        )
    chosen = _solve(np.array(table.costs.tolist()), weights, limit, allowed)
    scheme = _scheme(table, chosen, around)
    predicted = sum(float(table.costs[i, j]) for i, j in enumerate(chosen))
    return Allocation(scheme, predicted, _spent(scheme, unit))


def _solve(costs: np.ndarray, weights: Sequence[Sequence[int]], limit: int, allowed: np.ndarray) -> list[int]:
    """The choice of each row that minimises the costs, with a total weight of at most ``limit``.

    Rows are taken one after another, and of the partial choices only those are kept that can still win: no other is as
    light and as cheap, and cost plus the Lagrangian bound of what is left, ``sum_l min_b (c_lb + m w_lb) - m limit``,
    is below the cost of a choice known to fit. Weights are whole numbers and never rounded; of choices whose costs
    agree to 1e-12 any may be taken. Thousands of partial choices remain where all weights and layers give millions.
    """
    # Largest rows first: the smaller ones then find few places left.
    order = sorted(range(len(weights)), key=lambda i: -max(weights[i]))
    whole = np.array([weights[i] for i in order], dtype=np.int64)
    costs = np.where(allowed, costs - np.where(allowed, costs, np.inf).min(1, keepdims=True), np.inf)[order]
    price, best = _lagrange(costs, whole, limit)
    known = float(sum(costs[i, j] for i, j in enumerate(best)))
    reduced = (costs + price * whole).min(1)
    left = np.concatenate([np.cumsum(reduced[::-1])[::-1][1:], [0.0]])  # of the rows behind each
    light = np.where(np.isfinite(costs), whole, limit + 1).min(1)
    room = limit - np.concatenate([np.cumsum(light[::-1])[::-1][1:], [0]])
    taken, spent = np.zeros(1, dtype=np.int64), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    for i, (row, sizes) in enumerate(zip(costs, whole, strict=True)):
        weight, cost = (taken[:, None] + sizes).ravel(), (spent[:, None] + row).ravel()
        able = (weight <= room[i]) & (cost + price * (weight - float(limit)) + left[i] < known * (1 - 1e-12))
        kept = np.flatnonzero(able)
        kept = kept[np.lexsort((cost[kept], weight[kept]))]
        cheapest = np.minimum.accumulate(np.concatenate([[np.inf], cost[kept]]))
        kept = kept[cost[kept] < cheapest[:-1]]
        steps.append((kept // len(row), kept % len(row)))
        taken, spent = weight[kept], cost[kept]
    if spent.size and spent[-1] < known:  # the heaviest is the cheapest
        place = len(spent) - 1
        for i, (parents, choices) in reversed(list(enumerate(steps))):
            best[i], place = int(choices[place]), int(parents[place])
    chosen = [0] * len(order)
    for i, j in zip(order, best, strict=True):
        chosen[i] = j
    return chosen


def _lagrange(costs: np.ndarray, weights: np.ndarray, limit: int) -> tuple[float, list[int]]:
    """The price of a unit of weight at which choosing row by row just fits; that choice, its free room filled."""
    rows = np.arange(len(costs))

    def choice(price: float) -> np.ndarray:
        total = costs + price * weights
        ties = total <= total.min(1, keepdims=True)
        return np.where(ties, weights, np.iinfo(np.int64).max).argmin(1)

    finite = costs[np.isfinite(costs)]
    low, high = 0.0, float(finite.max()) * 2 + np.finfo(float).tiny  # a unit is dearer than all that it could save
    best = choice(low)
    if weights[rows, best].sum() <= limit:
        return low, best.tolist()
    for _ in range(200):
        price = (low + high) / 2
        low, high = (low, price) if weights[rows, choice(price)].sum() <= limit else (price, high)
    best = choice(high)
    while True:
        free = limit - weights[rows, best].sum()
        gain = costs[rows, best][:, None] - costs
        gain[weights - weights[rows, best][:, None] > free] = 0
        i, j = np.unravel_index(gain.argmax(), gain.shape)
        if gain[i, j] <= 0:
            return high, best.tolist()
        best[i] = j


def _sizes(table: CostTable, unit: str, around: Surroundings) -> list[list[int]]:
    """What each choice takes: bits of magnitude, bits with signs, or bit operations; whole numbers."""
    if unit == "mean_bits":
        return [[size * n for n in table.bits] for size in table.sizes]
    if unit == "kilobytes":
        return [[size * (n + 1) if n else 0 for n in table.bits] for size in table.sizes]
    if not around.macs:
        raise ValueError("a budget of gbops needs the MACs of every layer: count_macs(net, image_size)")
    act = around.act_precision or FLOAT_BITS
    empty = _scheme(table, [0] * len(table.names), around)
    each = {layer.name: layer.macs * (layer.bits_of_input or act) for layer in empty.layers}
    first = empty.layers[0]
    each[first.name] = first.macs * (first.bits_of_input or PIXEL_BITS)
    for owner, macs, read in empty.tied:
        each[owner] += macs * (read or act)
    return [[each[name] * (n + 1) if n else 0 for n in table.bits] for name in table.names]


def _limit(table: CostTable, budget: float, unit: str, around: Surroundings) -> int:
    """The budget in the units of ``_sizes``, less what is spent in any case."""
    if not math.isfinite(budget):
        return 2**62 if budget > 0 else -1
    slack = 1 + 1e-12  # a budget of 1.951 mean bits is not a float
    if unit == "mean_bits":
        return math.floor(budget * sum(table.sizes) * slack)
    if unit == "kilobytes":
        return math.floor(budget * 8000 * slack) - FLOAT_BITS * (around.float_parameters + len(table.names))
    return math.floor(budget * 1e9 * slack) - _scheme(table, [0] * len(table.names), around).float_macs * FLOAT_BITS**2


def _scheme(table: CostTable, chosen: Sequence[int], around: Surroundings) -> Scheme:
    macs, reads = around.macs or {}, around.input_bits or {}
    layers = tuple(
        LayerScheme(name, size, table.bits[j], float(table.steps[i, j]), macs.get(name, 0), reads.get(name, 0))
        for i, (name, size, j) in enumerate(zip(table.names, table.sizes, chosen, strict=True))
    )
    rest = sum(count for name, count in macs.items() if name not in table.names and name not in around.owners)
    tied = tuple((owner, macs[name], reads.get(name, 0)) for name, owner in around.owners.items() if name in macs)
    return Scheme(layers, around.float_parameters, around.act_precision, rest, tied)


def _spent(scheme: Scheme, unit: str) -> float:
    if unit == "mean_bits":
        return scheme.mean_precision
    return scheme.bits("model") / 8000 if unit == "kilobytes" else scheme.gbops or 0.0
