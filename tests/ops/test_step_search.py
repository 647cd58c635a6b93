from itertools import product

import pytest
import torch

from bsq_lightning.ops.step_search import best_candidate, codes_of, exact_step, grid_step, step_errors
from bsq_lightning.ops.uniform import mse_step


def brute_force(row: torch.Tensor, top: int) -> float:
    """Least squared error over all codes, each with its best step."""
    codes = torch.tensor(list(product(range(-top, top + 1), repeat=len(row))), dtype=row.dtype)
    products, squares = codes @ row, codes.square().sum(1)
    return float(row.square().sum() - (products.square() / squares.clamp_min(1)).max())


def test_exact_step_is_the_brute_force_optimum() -> None:
    rows = torch.randn(100, 4, dtype=torch.float64)
    steps, codes = exact_step(rows, top=3)
    errors = (rows - steps.unsqueeze(1) * codes).square().sum(1)
    for row, error in zip(rows, errors, strict=True):
        assert abs(float(error) - brute_force(row, 3)) < 1e-9


@pytest.mark.parametrize("top", [1, 3, 7])
def test_exact_codes_are_the_rounding_at_their_own_step(top: int) -> None:
    rows = torch.randn(20, 50, dtype=torch.float64)
    steps, codes = exact_step(rows, top)
    assert torch.equal(codes_of(rows, steps, top).int(), codes)


@pytest.mark.parametrize("top", [1, 3, 7])
def test_exact_is_never_worse_than_grids(top: int) -> None:
    rows = torch.randn(20, 30, dtype=torch.float64)
    errors = {}
    for name, (steps, codes) in {
        "exact": exact_step(rows, top),
        "paper": grid_step(rows, top, eta=2**-9),
    }.items():
        errors[name] = (rows - steps.unsqueeze(1) * codes).square().sum(1)
    errors["fractions"] = best_candidate(rows, top)[1]
    assert bool((errors["exact"] <= errors["paper"] + 1e-12).all())
    assert bool((errors["exact"] <= errors["fractions"] + 1e-12).all())
    # 1024 candidates come close, and finer grids closer.
    assert float((errors["paper"] / errors["exact"]).max()) < 1.03


@pytest.mark.parametrize("precision", [1, 2, 4, 8])
def test_best_candidate_is_mse_step(precision: int) -> None:
    weight = torch.randn(7, 40, dtype=torch.float64)
    step, error = best_candidate(weight.view(1, -1), 2**precision - 1)
    assert torch.allclose(step[0], mse_step(weight, precision))
    codes = codes_of(weight.view(1, -1), step, 2**precision - 1)
    assert torch.allclose(error, (codes * step.unsqueeze(1) - weight.view(1, -1)).square().sum(1))


def test_errors_of_steps_are_those_of_the_dequantized_rows() -> None:
    rows, steps = torch.randn(5, 30, dtype=torch.float64), torch.rand(5, 9, dtype=torch.float64) + 0.01
    for place in range(9):
        step = steps[:, place]
        expected = (codes_of(rows, step, 3) * step.unsqueeze(1) - rows).square().sum(1)
        assert torch.allclose(step_errors(rows, steps, 3)[:, place], expected)


def test_rows_of_zeros_have_no_step() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, -1.0]])
    for steps, codes in (exact_step(rows, 3), grid_step(rows, 3, eta=0.01)):
        assert float(steps[0]) == 0 and not bool(codes[0].any()) and bool(torch.isfinite(steps).all())
    assert float(best_candidate(rows, 3)[1][0]) == 0
