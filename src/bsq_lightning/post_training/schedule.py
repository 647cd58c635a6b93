"""Which filters get how many shifts, where the filters of a tile run in lock step (SWIS, filter scheduling)."""

import heapq
import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Schedule:
    """Numbers of shifts of filters, and the order in which they form tiles.

    Args:
        order: filters in the order of the array, int64 ``[K]``; every ``tile`` of them is one tile.
        shifts: shifts of each filter, int64 ``[K]``, in the network's own order.
    """

    order: Tensor
    shifts: Tensor

    @property
    def undo(self) -> Tensor:
        """The permutation that puts outputs of the array back: ``outputs[order][undo] == outputs``."""
        return self.order.argsort()


def schedule_filters(errors: Tensor, mean: float, tile: int, double: bool = False, sort: bool = True) -> Schedule:
    """The greedy schedule: the tile whose error falls most by one more shift gets it, until the mean is reached.

    Filters are sorted by their error at ``mean`` shifts first, so that those which need many share tiles; that sorting
    is what pays. The last tile counts as a whole one, for it takes the array's time. Where ``mean`` times the number
    of tiles is not reachable, the mean is the next lower one that is. Greedy is optimal for errors that fall less and
    less, and equalled the optimum wherever it was tried (tests/post_training/test_schedule.py).

    Args:
        errors: error of each filter at 1, 2, ..., B shifts, ``[K, B]``.
        mean: shifts of a tile, on average; may have a fraction.
        tile: filters of a tile.
        double: the array takes two shifts a cycle: tiles have an even number (recalled, unverified).
        sort: form tiles by error; False leaves the network's order, to see what sorting is worth.

    Raises:
        ValueError: a mean that no schedule has.

    Example:
        >>> errors = torch.tensor([[9.0, 1.0, 0.0], [2.0, 1.0, 0.0], [9.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
        >>> schedule_filters(errors, mean=1.5, tile=2).shifts
        tensor([2, 1, 2, 1])
    """
    filters, highest = errors.shape
    unit = 2 if double else 1
    if not unit <= mean <= highest - highest % unit:
        raise ValueError(f"shifts is a mean from {unit} to {highest - highest % unit} here, not {mean!r}")
    order = torch.arange(filters, device=errors.device)
    if sort:
        order = errors[:, int(mean) - 1].argsort(descending=True, stable=True)
    padded = torch.nn.functional.pad(errors[order].double(), (0, 0, 0, -filters % tile))
    table = padded.view(-1, tile, highest).sum(1).tolist()
    numbers = [unit] * len(table)
    left = math.floor(mean * len(table) / unit + 1e-9) - len(table)

    def gain(t: int) -> float:
        return table[t][numbers[t] + unit - 1] - table[t][numbers[t] - 1]

    waiting = [(gain(t), t) for t in range(len(table)) if numbers[t] + unit <= highest]
    heapq.heapify(waiting)
    while left > 0 and waiting:
        _, t = heapq.heappop(waiting)
        numbers[t] += unit
        left -= 1
        if numbers[t] + unit <= highest:
            heapq.heappush(waiting, (gain(t), t))
    shifts = torch.empty(filters, dtype=torch.int64, device=errors.device)
    shifts[order] = torch.tensor(numbers, device=errors.device).repeat_interleave(tile)[:filters]
    return Schedule(order, shifts)
