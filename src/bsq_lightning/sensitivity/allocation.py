"""Which bits for which layer: the exact optimum of a cost table under a budget."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

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

    A knapsack with one choice a tensor, solved by HiGHS (scipy) as an integer program; sizes are whole numbers, so the
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
    """The choice of each row that minimises the costs, with a total weight of at most ``limit``."""
    rows, columns = costs.shape
    # Small whole numbers, and costs of a size at which the solver's absolute tolerance of 1e-6 is nothing.
    unit = math.gcd(*(w for row in weights for w in row)) or 1
    whole = np.array([[w // unit for w in row] for row in weights], dtype=np.float64)
    costs = np.where(allowed, costs - costs.min(1, keepdims=True), 0)
    costs = costs * (1e6 / max(costs.max(), np.finfo(float).tiny))
    never = LinearConstraint((~allowed).ravel().astype(float), 0, 0)
    choose = LinearConstraint(np.kron(np.eye(rows), np.ones(columns)), 1, 1)
    room = limit // unit
    while True:
        found = milp(
            costs.ravel(),
            integrality=np.ones(costs.size),
            bounds=Bounds(0, 1),
            constraints=[choose, never, LinearConstraint(whole.ravel(), -np.inf, room)],
            options={"mip_rel_gap": 0.0, "presolve": False},  # with it, HiGHS prints to the screen now and then
        )
        if found.x is None:
            raise RuntimeError(f"the solver found no scheme: {found.message}")
        chosen = [int(j) for j in found.x.reshape(rows, columns).argmax(1)]
        spent = int(sum(whole[i, j] for i, j in enumerate(chosen)))
        if spent <= limit // unit:
            return chosen
        room -= spent - limit // unit  # its tolerance let one unit slip through


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
