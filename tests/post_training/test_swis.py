"""The checks of SWIS, with the values that were found when the method was first tried, and identities with others."""

from itertools import combinations, product

import pytest
import torch
from torch import Tensor

from bsq_lightning.ops.shared_shifts import share_shifts
from bsq_lightning.post_training import SWIS, Round, Truncate
from bsq_lightning.quantized_tensor import QuantizedTensor

# Squared error over energy on N(0, 1) weights, B = 8, M = 4: SWIS, SWIS-C, truncation.
NORMAL = {1: (0.147, 0.147, 0.393), 2: (0.026, 0.033, 0.097), 3: (0.0055, 0.0078, 0.024), 4: (0.0013, 0.0019, 0.0061)}


def score(group: Tensor, shared: Tensor, alpha: float = 0.0) -> float:
    error = (group - shared).double()
    return float(error.square().sum() + alpha * error.sum().square())


def test_tables_equal_brute_force() -> None:
    """Over all subsets and all masks together: B = 4, N = 2, M = 3."""
    groups = torch.randint(-15, 16, (300, 3))
    shared = share_shifts(groups, number=2, bits=4)
    choices = [
        torch.tensor(list(product([sum(m) for m in ((0,), (2**a,), (2**b,), (2**a, 2**b))], repeat=3)))
        for a, b in combinations(range(4), 2)
    ]
    for group, found in zip(groups, shared, strict=True):
        errors = [(group.abs() - values).square().sum(1).min() for values in choices]
        assert score(group, found) == float(min(errors))


@pytest.mark.parametrize("alpha", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("consecutive", [False, True])
def test_coordinate_pass_never_raises_the_score(alpha: float, consecutive: bool) -> None:
    """Against nearest rounding in every subset, whose least score is where the pass starts."""
    groups = torch.randint(-15, 16, (200, 4))
    shared = share_shifts(groups, 2, 4, consecutive, alpha)
    subsets = [(0, 1), (1, 2), (2, 3)] if consecutive else list(combinations(range(4), 2))
    improved = 0
    for group, found in zip(groups, shared, strict=True):
        nearest = []
        for a, b in subsets:
            values = torch.tensor(sorted({0, 2**a, 2**b, 2**a + 2**b}))
            place = (group.abs().unsqueeze(1) - values).abs().argmin(1)
            nearest.append(score(group, group.sign() * values[place], alpha))
        assert score(group, found, alpha) <= min(nearest) + 1e-9
        improved += score(group, found, alpha) < min(nearest) - 1e-9
    assert improved


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_groups_use_no_more_positions_than_they_store(consecutive: bool, alpha: float) -> None:
    groups = torch.randint(-255, 256, (500, 4))
    for number in range(1, 9):
        shared = share_shifts(groups, number, 8, consecutive, alpha).abs()
        used = [[any(int(code) >> bit & 1 for code in group) for bit in range(8)] for group in shared]
        for bits in used:
            where = [bit for bit, one in enumerate(bits) if one]
            span = (where[-1] - where[0] + 1 if consecutive else len(where)) if where else 0
            assert span <= number
    assert torch.equal(share_shifts(groups, 8, 8, consecutive), groups)


def test_a_group_of_few_bits_is_exact() -> None:
    group = torch.tensor([[0b1010, -0b0010, 0b1000, 0]])
    assert torch.equal(share_shifts(group, number=2, bits=4), group)
    assert not torch.equal(share_shifts(group, number=2, bits=4, consecutive=True), group)


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("group", [4, 8, 16])
def test_swis_is_best_and_truncation_worst(number: int, group: int) -> None:
    weight = torch.randn(100, 784)
    methods = SWIS(number, group), SWIS(number, group, consecutive=True), Truncate(number)
    whole = SWIS(8, group)(weight).dequantize()
    errors = [float((m(weight).dequantize() - whole).square().sum() / whole.square().sum()) for m in methods]
    assert errors[0] <= errors[1] <= errors[2]
    if group == 4:
        assert errors == pytest.approx(NORMAL[number], rel=0.2)


def test_truncation_is_swis_c_with_one_offset_a_layer() -> None:
    """Where the best single offset is the topmost one, as it is for flat weights, the two are equal."""
    weight = torch.rand(1, 600) * 2 - 1
    for number in (1, 2, 4, 7):
        shared = SWIS(number, group=600, consecutive=True)(weight)
        assert torch.allclose(shared.dequantize(), Truncate(number)(weight).dequantize(), atol=1e-7)


@pytest.mark.parametrize(("low", "high"), [(0, 2), (2, 4), (3, 3), (5, 7)])
def test_live_planes_of_a_layer_are_swis_c_with_the_layer_as_a_group(low: int, high: int) -> None:
    """A BSQ layer whose live planes are low..high: every code is a multiple of 2^low below 2^(high + 1)."""
    codes = torch.randint(0, 2 ** (high - low + 1), (64,)) * 2**low * (1 - 2 * torch.randint(0, 2, (64,)))
    assert torch.equal(share_shifts(codes.view(1, -1), high - low + 1, 8, consecutive=True).flatten(), codes)


@pytest.mark.parametrize(
    ("consecutive", "group", "expected"),
    [
        (False, 4, (2.91, 1.78, 1.28, 1.00)), (False, 8, (3.37, 2.13, 1.56, 1.23)),
        (False, 16, (3.66, 2.37, 1.75, 1.39)), (True, 4, (2.91, 2.13, 1.68, 1.39)),
        (True, 8, (3.37, 2.37, 1.83, 1.49)), (True, 16, (3.66, 2.51, 1.91, 1.54)),
    ],
)  # fmt: skip
def test_storage_is_that_of_the_formula(consecutive: bool, group: int, expected: tuple[float, ...]) -> None:
    weight = torch.randn(8, 48)
    for number, ratio in enumerate(expected, 1):
        tensor = SWIS(number, group, consecutive=consecutive)(weight)
        if consecutive:  # the page counts 3 bits for every offset; ceil(log2(B - N + 1)) of its formula needs fewer
            assert 8 * weight.numel() / tensor.storage_bits() >= ratio - 0.005
        else:
            assert 8 * weight.numel() / tensor.storage_bits() == pytest.approx(ratio, abs=0.01)


def test_groups_run_along_channels_and_stay_in_their_filter() -> None:
    weight = torch.randn(6, 8, 3, 3)
    tensor = SWIS(2, group=4)(weight)
    for place in range(9):  # the two groups of each kernel place, on their own
        pixel = weight.flatten(2)[:, :, place]
        largest = weight.abs().max() / 255
        codes = (pixel / largest).round().int().view(6, 2, 4)
        assert torch.equal(tensor.codes.flatten(2)[:, :, place], share_shifts(codes, 2, 8).view(6, 8))
    depthwise = torch.randn(6, 1, 3, 3)
    together, apart = SWIS(2, step="max", per_channel=True)(depthwise), []
    for one in depthwise:
        apart.append(SWIS(2, step="max", per_channel=True)(one.unsqueeze(0)).codes)
    assert torch.equal(together.codes, torch.cat(apart))


def test_codes_of_another_method_keep_their_steps() -> None:
    """SWIS after BSQ: codes of 3 bits that never reach 7, which rounding anew would put on another grid."""
    codes = torch.randint(-5, 6, (6, 8, 3, 3), dtype=torch.int32)
    before = QuantizedTensor(codes, torch.tensor(0.1), 3)
    shared = SWIS(2).share(before)
    assert torch.equal(shared.step, before.step) and shared.precision == 3
    assert float((shared.codes - codes).abs().max()) <= 2
    assert torch.equal(SWIS(3).share(before).codes, codes)
    assert torch.equal(SWIS(5.5, schedule="greedy").share(before).codes, codes)
    with pytest.raises(ValueError, match="plain codes"):
        SWIS(2).share(shared)
    weight = torch.randn(6, 8, 3, 3)
    assert torch.equal(SWIS(2).share(Round(8, step="max")(weight)).codes, SWIS(2)(weight).codes)
