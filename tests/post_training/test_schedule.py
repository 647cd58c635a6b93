from functools import reduce

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.post_training import SWIS, schedule_filters


def best_possible(errors: Tensor, total: int) -> float:
    """Least error over all whole numbers of shifts of tiles that add up to ``total``: dynamic programming."""

    def add(known: dict[int, float], row: list[float]) -> dict[int, float]:
        found: dict[int, float] = {}
        for spent, error in known.items():
            for n, more in enumerate(row, 1):
                if spent + n <= total:
                    found[spent + n] = min(found.get(spent + n, float("inf")), error + more)
        return found

    return reduce(add, errors.tolist(), {0: 0.0})[total]


def errors_of(weight: Tensor) -> Tensor:
    """Squared error of each filter at 1..8 shifts, in units of one code."""
    found = []
    whole = SWIS(8)(weight)
    for n in range(1, 9):
        found.append((SWIS(n)(weight).codes - whole.codes).double().square().flatten(1).sum(1))
    return torch.stack(found, 1)


def filters(count: int = 64, depth: int = 72) -> Tensor:
    """Filters of very different scales, as those of a depthwise network are."""
    return torch.randn(count, depth) * torch.randn(count, 1).exp()


@pytest.mark.parametrize("tile", [4, 8])
@pytest.mark.parametrize("mean", [1.0, 2.0, 2.5, 3.0, 6.0])
def test_greedy_is_the_optimum_and_keeps_the_mean(tile: int, mean: float) -> None:
    errors = errors_of(filters())
    found = schedule_filters(errors, mean, tile)
    assert float(found.shifts.double().mean()) == mean
    tiles = errors[found.order].view(-1, tile, 8).sum(1)
    error = float(errors.gather(1, found.shifts.unsqueeze(1) - 1).sum())
    assert error == pytest.approx(best_possible(tiles, round(mean * len(tiles))))
    for filters_of_tile in found.order.view(-1, tile):
        assert len(found.shifts[filters_of_tile].unique()) == 1


def test_sorting_is_what_pays() -> None:
    """Reference: 182,828 uniform and in natural order, 61,892 sorted (A = 8), 58,093 (A = 4): about a third."""
    errors = errors_of(filters())

    def total(tile: int, sort: bool) -> float:
        found = schedule_filters(errors, 2.0, tile, sort=sort)
        return float(errors.gather(1, found.shifts.unsqueeze(1) - 1).sum())

    uniform = float(errors[:, 1].sum())
    assert total(4, True) <= total(8, True) <= total(8, False) <= uniform
    assert total(8, True) < 0.6 * uniform


def test_double_shift_has_even_numbers() -> None:
    found = schedule_filters(errors_of(filters()), 3.0, 8, double=True)
    assert set(found.shifts.tolist()) <= {2, 4, 6, 8} and float(found.shifts.double().mean()) == 3
    with pytest.raises(ValueError, match="from 2 to 8"):
        schedule_filters(torch.rand(4, 8), 1.0, 2, double=True)


def test_tiles_that_are_not_full() -> None:
    found = schedule_filters(errors_of(filters(10)), 2.0, 4)
    counts = [int(found.shifts[found.order[i]]) for i in (0, 4, 8)]
    assert sum(counts) == 6


def test_permutation_is_undone() -> None:
    """The array computes filters in its own order; put back, outputs are the same bits."""
    layer = nn.Conv2d(3, 24, 3, bias=False)
    method = SWIS(2.5, schedule="greedy", tile=8)
    tensor = method(layer.weight.detach())
    weight = tensor.dequantize()
    found = schedule_filters(errors_of(layer.weight.detach().flatten(1)), 2.5, 8)
    images = torch.randn(2, 3, 8, 8)
    outputs = nn.functional.conv2d(images, weight)
    permuted = nn.functional.conv2d(images, weight[found.order])[:, found.undo]
    assert torch.equal(permuted, outputs)
    assert float(tensor.extra.number.double().mean()) == pytest.approx(7 / 3)  # 7 of 7.5 shifts on 3 tiles
