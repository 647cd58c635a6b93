import copy
from functools import partial

import pytest
import torch

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, LatentStep
from bsq_lightning.regularizers import BitGroupLasso
from tests.helpers import TinyNet


def test_growth_adds_exactly_one_bit() -> None:
    quantizer = BitPlaneQuantizer(torch.tensor([1.0, 0.5, -0.25], dtype=torch.float64), precision=2)
    quantizer.planes.data.fill_(0)
    quantizer.planes.data[0] = 2.0  # the largest code possible: 2 * (2^2 - 1) = 6
    assert float(quantizer.codes().max()) == 6
    quantizer.planes.data[0, :, 1] = 0.5
    before = quantizer.weight()
    quantizer.adjust_precision_()
    assert quantizer.precision == 2  # codes 6 and 2: one bit grown, one trailing zero trimmed
    assert torch.equal(quantizer.codes(), torch.tensor([3.0, 1.0, 3.0], dtype=torch.float64))
    assert torch.allclose(quantizer.weight(), before, rtol=1e-15, atol=0)


def test_growth_shows_where_a_code_is_odd() -> None:
    quantizer = BitPlaneQuantizer(torch.tensor([1.0, 1 / 3], dtype=torch.float64), precision=2)
    quantizer.planes.data[0, :, 0] = 2.0  # codes 6 and 1
    before = quantizer.weight()
    quantizer.adjust_precision_()
    assert quantizer.precision == 3
    assert torch.allclose(quantizer.weight(), before, rtol=1e-15, atol=0)


def test_growth_stops_at_max_precision_and_codes_are_clipped_there() -> None:
    quantizer = BitPlaneQuantizer(torch.tensor([1.0, 0.3]), precision=3, max_precision=3)
    quantizer.planes.data[0] = 2.0
    assert float(quantizer.codes().max()) == 7
    before = quantizer.weight()
    quantizer.adjust_precision_()
    assert quantizer.precision <= 3
    assert torch.allclose(quantizer.weight(), before, rtol=1e-6)


def test_zero_bits() -> None:
    quantizer = BitPlaneQuantizer(torch.randn(4, 3), precision=4)
    quantizer.planes.data.mul_(0.01)
    quantizer.adjust_precision_()
    assert quantizer.precision == 0
    assert quantizer.planes.shape == (2, 0, 4, 3)
    assert not quantizer.weight().any() and float(quantizer.step()) == 0
    scale = quantizer.scale.clone()
    step = LatentStep(quantizer, torch.zeros(4, 3), torch.ones(4, 3), {})
    BitPlaneQuantizer.sgd_steps_([step], {"lr": 1, "momentum": 0, "weight_decay": 1})
    quantizer.adjust_precision_()
    assert quantizer.precision == 0 and torch.equal(quantizer.scale, scale)


def test_the_2021_code_keeps_one_bit_and_jumps() -> None:
    empty = BitPlaneQuantizer(torch.randn(4), precision=4, min_precision=1)
    empty.planes.data.mul_(0.01)
    empty.adjust_precision_()
    assert empty.precision == 1
    clipped = BitPlaneQuantizer(torch.tensor([1.0, 0.3]), precision=2, clip_always=True)
    clipped.planes.data[0, :, 0] = 1.4  # value 1.4 * 3
    assert float(clipped.codes()[0]) == 3
    clipped.adjust_precision_()
    assert clipped.precision == 3 and float(clipped.codes()[0]) == 4
    assert float(clipped.weight()[0]) == pytest.approx(4 / 3)  # 1 before: the function jumps


def test_all_zero_and_wrong_precisions_are_refused() -> None:
    with pytest.raises(ValueError, match="all weights are zero"):
        BitPlaneQuantizer(torch.zeros(3))
    with pytest.raises(ValueError, match="above quant.max_precision"):
        BitPlaneQuantizer(torch.ones(3), precision=9)


def test_fixed_precision_starts_where_planes_end() -> None:
    planes = BitPlaneQuantizer(torch.randn(50, dtype=torch.float64), precision=4)
    for units in ("scale", "weight"):
        fixed = LatentQuantizer(planes.weight(), planes.precision, step=float(planes.step()), units=units)
        assert torch.equal(fixed.codes(), planes.codes())
        assert torch.allclose(fixed.weight(), planes.weight(), rtol=1e-15)


def trained_in_sixteen_bits(
    state: dict | None = None, steps: int = 3, noise: bool = False
) -> tuple[QuantizedNetwork, LatentOptimizer]:
    torch.manual_seed(0)
    network = QuantizedNetwork(TinyNet(), partial(BitPlaneQuantizer, state_dtype="bfloat16"), precision=4)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.05, momentum=0.9), BitGroupLasso(1e-2))
    if state:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
    for step in range(3 if state else 0, 3 + steps if state else steps):
        generator = torch.Generator().manual_seed(step)
        for _, parameter, _ in network.quantizers():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        torch.manual_seed(torch.seed() if noise else 0)  # as every rank has numbers of its own
        optimizer.step()
    return network, optimizer


def test_sixteen_bits_take_half_the_memory_and_hold_the_weights_exactly() -> None:
    network, optimizer = trained_in_sixteen_bits()
    network.check_weights()
    for _, parameter, quantizer in network.quantizers():
        assert isinstance(quantizer, BitPlaneQuantizer)
        assert quantizer.planes.element_size() == optimizer.state[parameter]["planes"].element_size() == 2
        before = quantizer.weight()
        quantizer.adjust_precision_()
        assert quantizer.planes.dtype == torch.bfloat16
        assert torch.allclose(quantizer.weight(), before, rtol=1e-6)


def test_sixteen_bits_resume_bit_for_bit() -> None:
    network, optimizer = trained_in_sixteen_bits()
    state = copy.deepcopy({"network": network.state_dict(), "optimizer": optimizer.state_dict()})
    resumed, _ = trained_in_sixteen_bits(state, steps=2)
    whole, _ = trained_in_sixteen_bits(steps=5)
    expected = whole.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in resumed.state_dict().items())


def test_sixteen_bits_are_rounded_the_same_way_on_all_ranks() -> None:
    one, _ = trained_in_sixteen_bits(noise=True)
    other, _ = trained_in_sixteen_bits(noise=True)
    expected = one.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in other.state_dict().items())


def test_other_dtypes_of_the_state_are_refused() -> None:
    with pytest.raises(ValueError, match="quant.state_dtype is null .* or bfloat16, not 'int8'"):
        BitPlaneQuantizer(torch.ones(3), state_dtype="int8")
