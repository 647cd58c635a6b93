"""Slices by hand and golden numbers; crossbars that never saturate compute the layer itself."""

import pytest
import torch
from torch.nn import functional as F

from bsq_lightning.ops.bit_slices import (
    adc_bits,
    column_sums,
    energy_factor,
    nonzero_shares,
    saturating_conv2d,
    saturating_matmul,
    slice_uses,
    slices,
    speed_factor,
)


def in_base(number: int, base: int, digits: int) -> list[int]:
    return [number // base**k % base for k in range(digits)]


@pytest.mark.parametrize("slice_bits", [1, 2, 4])
def test_digits_of_every_code(slice_bits: int) -> None:
    codes = torch.arange(-255, 256)
    expected = [in_base(abs(int(code)), 2**slice_bits, 8 // slice_bits) for code in codes]
    assert slices(codes, slice_bits=slice_bits).T.tolist() == expected


def test_code_256_is_cut_and_no_slice_holds_a_4() -> None:
    assert slices(torch.tensor([256, -300])).tolist() == [[3, 3]] * 4


def test_shares_of_slices() -> None:
    codes = torch.tensor([[0, 1, 4, 16], [64, 85, -255, 0]])
    assert nonzero_shares(codes).tolist() == [3 / 8, 3 / 8, 3 / 8, 3 / 8]
    assert slice_uses(codes)[0].nonzero_of_unpruned == 3 / 6


def test_golden_factors_of_the_adcs() -> None:
    assert energy_factor(1) == pytest.approx(28.44, abs=5e-3) and speed_factor(1) == 8
    assert energy_factor(3) == pytest.approx(14.22, abs=5e-3) and speed_factor(3) == pytest.approx(2.67, abs=5e-3)
    assert energy_factor(8) == speed_factor(8) == 1
    assert [adc_bits(n) for n in (0, 1, 2, 3, 4, 384)] == [0, 1, 2, 2, 3, 9]


def test_adc_bits_of_columns_of_known_density() -> None:
    """200 rows: a crossbar of 128 and one of 72; column k has k cells of 1 in the first, and one of 3 in the second."""
    codes = torch.zeros(5, 200, dtype=torch.int32)
    for k in range(5):
        codes[k, :k] = 1
        codes[k, 150] = -3
    sums = column_sums(codes)
    assert sums.shape == (4, 2, 2, 5)
    assert sums[0, 0].tolist() == [[0, 1, 2, 3, 4], [0] * 5]
    assert sums[0, 1].tolist() == [[0] * 5, [3] * 5]
    assert not sums[1:].any()
    use = slice_uses(codes)[0]
    assert (use.largest, use.adc_bits) == (4, 3)
    dense = torch.full((1, 128), 255)
    assert slice_uses(dense)[0].adc_bits == 9


def test_one_column_of_a_thousand_does_not_decide_the_covering_bits() -> None:
    codes = torch.ones(2000, 10, dtype=torch.int32)
    codes[0] = 3
    use = slice_uses(codes)[0]
    assert (use.adc_bits, use.covering_adc_bits) == (5, 4)


def test_what_never_saturates_is_exact() -> None:
    inputs, codes = torch.randint(-15, 16, (5, 300)), torch.randint(-255, 256, (7, 300))
    exact = inputs.double() @ codes.double().T
    assert torch.equal(saturating_matmul(inputs, codes, [9] * 4, input_bits=4), exact)
    assert torch.equal(saturating_matmul(inputs, codes, [9] * 8, input_bits=4, slice_bits=1), exact)
    widths = [use.adc_bits for use in slice_uses(codes)]
    assert torch.equal(saturating_matmul(inputs, codes, widths, input_bits=4), exact)
    assert not torch.equal(saturating_matmul(inputs, codes, [width - 2 for width in widths], input_bits=4), exact)


@pytest.mark.parametrize("settings", [{}, {"stride": 2, "padding": 1}, {"padding": (1, 0), "dilation": (2, 1)}])
@pytest.mark.parametrize("groups", [1, 3])
def test_a_convolution_that_never_saturates_is_the_convolution(settings: dict, groups: int) -> None:
    inputs, codes = torch.randint(-7, 8, (2, 6, 9, 8)), torch.randint(-255, 256, (9, 6 // groups, 3, 3))
    found = saturating_conv2d(inputs, codes, [9] * 4, input_bits=3, groups=groups, at_once=20, **settings)
    assert torch.equal(found, F.conv2d(inputs.double(), codes.double(), groups=groups, **settings))


def test_saturation_by_hand() -> None:
    """Three cells of 3 whose inputs are all 1 give 9, and an ADC of 2 bits reads 3; one of 0 bits, nothing."""
    inputs, codes = torch.tensor([[1, 1, 1]]), torch.tensor([[3, 3, 3], [-3, -3, -3], [12, 12, 12]])
    assert saturating_matmul(inputs, codes, [2, 4, 1, 1], input_bits=1).tolist() == [[3, -3, 36]]
    assert saturating_matmul(-inputs, codes, [2, 4, 1, 1], input_bits=1).tolist() == [[-3, 3, -36]]
    assert saturating_matmul(inputs, codes, [0, 4, 1, 1], input_bits=1).tolist() == [[0, 0, 36]]
    with pytest.raises(ValueError, match="4 slices"):
        saturating_matmul(inputs, codes, [8], input_bits=1)
