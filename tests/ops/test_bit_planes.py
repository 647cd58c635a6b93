import pytest
import torch

from bsq_lightning.ops.bit_planes import merge_planes, plane_squares, split_planes, trim_codes
from bsq_lightning.ops.uniform import max_step, mse_step, quantize


@pytest.mark.parametrize("precision", range(1, 17))
def test_merge_undoes_split_for_every_code(precision: int) -> None:
    top = 2**precision - 1
    codes = torch.arange(-top, top + 1, dtype=torch.float64)[:: max(1, top // 500)]
    assert torch.equal(merge_planes(split_planes(codes, precision)), codes)


def test_no_code_has_both_signs() -> None:
    planes = split_planes(torch.randint(-255, 256, (1000,)).float(), 8)
    assert not bool((planes[0].any(0) & planes[1].any(0)).any())


def test_split_refuses_a_code_that_does_not_fit() -> None:
    with pytest.raises(ValueError, match="does not fit in 3 bits"):
        split_planes(torch.tensor([8.0]), 3)


@pytest.mark.parametrize("shift", range(5))
def test_trim_keeps_the_value(shift: int) -> None:
    codes = torch.randint(-7, 8, (50,)).double() * 2**shift
    codes[0] = 2**shift
    new, precision, found = trim_codes(codes)
    assert found == shift
    assert torch.equal(new * 2**shift, codes)
    assert int(new.abs().max()) < 2**precision <= 2 * int(new.abs().max())


def test_trim_of_zeros_is_no_bits() -> None:
    assert trim_codes(torch.zeros(3))[1:] == (0, 0)


def test_plane_squares_against_a_loop() -> None:
    planes = torch.rand(2, 3, 4, 5, dtype=torch.float64)
    expected = torch.stack([sum((planes[s, b] ** 2).sum() for s in range(2)) for b in range(3)])
    assert torch.allclose(plane_squares(planes), expected)


@pytest.mark.parametrize("precision", [1, 2, 4, 8])
def test_mse_step_is_no_worse_than_the_largest(precision: int) -> None:
    weight = torch.randn(2000, dtype=torch.float64)
    errors = []
    for step in (mse_step(weight, precision), max_step(weight, precision)):
        errors.append(float((quantize(weight, step, precision) * step - weight).square().sum()))
    assert errors[0] <= errors[1]
