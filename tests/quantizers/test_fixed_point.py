"""Dynamic fixed point and bit-slice L1: powers of two, code 256, golden gradients, pruning, and what it is for."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.bit_slices import nonzero_shares
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import (
    BitPlaneQuantizer,
    CSQQuantizer,
    FixedPointQuantizer,
    LatentQuantizer,
    LatentStep,
    WeightQuantizer,
)
from bsq_lightning.quantizers.fixed_point import prune
from bsq_lightning.regularizers import L1, BitsliceL1, Regularizer
from tests.helpers import TinyNet
from tests.quantizers.digits import accuracy, float_net, optimizer_of, train


@pytest.mark.parametrize(
    ("largest", "exponent"), [(1.0, 0), (1.0001, 1), (0.5, -1), (0.51, 0), (3.0, 2), (4.0, 2), (0.0, -16)]
)
def test_the_step_is_the_power_of_two_of_the_largest_weight(largest: float, exponent: int) -> None:
    quantizer = FixedPointQuantizer(torch.tensor([largest, -largest / 3]))
    assert float(quantizer.step()) == 2.0 ** (exponent - 8)


def test_it_follows_the_weights() -> None:
    quantizer = FixedPointQuantizer(torch.tensor([0.9, 0.3]))
    quantizer.latent.data *= 3
    quantizer.project_()
    assert float(quantizer.step()) == 2.0 ** (2 - 8)


def test_code_256_does_not_exist() -> None:
    quantizer = FixedPointQuantizer(torch.tensor([1.0, -1.0, 0.9999, 0.5]))
    assert quantizer.codes().tolist() == [255, -255, 255, 128]


def test_golden_gradient_of_the_slices() -> None:
    golden = {1: 1, 4: 0.25, 5: 1.25, 16: 0.0625, 17: 1.0625, 64: 0.015625, 65: 1.015625, 85: 1.328125, 255: 1.328125}
    codes = torch.tensor([*golden, *(-code for code in golden), 0], dtype=torch.float64)
    quantizer = FixedPointQuantizer(codes / 256)
    assert torch.equal(quantizer.codes(), codes)
    step = LatentStep(quantizer, quantizer.weight(), torch.zeros_like(codes), {})
    value = BitsliceL1(alpha=4 * len(codes)).add_gradient_({"fc": step})
    expected = torch.tensor([*golden.values(), *(-value for value in golden.values()), 0], dtype=torch.float64)
    assert torch.equal(step.grad * quantizer.step(), expected)
    assert float(value) == 2 * sum(sum(code // 4**k % 4 for k in range(4)) for code in golden)


def test_with_slices_of_one_bit_it_counts_ones() -> None:
    quantizer = BitPlaneQuantizer(torch.tensor([1.0, -0.4, 0.7]), precision=8)
    ones = sum(int(abs(code)).bit_count() for code in quantizer.codes().tolist())
    penalty = BitsliceL1(alpha=3 * 8, slice_bits=1).weight_penalty({"a": quantizer.weight()}, {"a": quantizer})
    assert float(penalty) == ones


@pytest.mark.parametrize("build", [BitPlaneQuantizer, LatentQuantizer, CSQQuantizer])
def test_a_trained_scale_feels_nothing_of_it(build: Callable[..., WeightQuantizer]) -> None:
    network = QuantizedNetwork(TinyNet().double(), build, precision=6)
    before = [quantizer.scale.clone() for _, _, quantizer in network.quantizers()]
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.1), BitsliceL1(alpha=1.0))
    network.write_training_weights_(torch.Generator())
    optimizer.step()
    for old, (_, _, quantizer) in zip(before, network.quantizers(), strict=True):
        assert torch.allclose(quantizer.scale, old, rtol=1e-12)


def test_it_presses_nothing_at_0_bits() -> None:
    quantizer = BitPlaneQuantizer(torch.tensor([1.0, 0.2]), precision=2)
    quantizer.planes.data.zero_()
    quantizer.adjust_precision_()
    step = LatentStep(quantizer, quantizer.weight(), torch.zeros(2), {})
    assert float(BitsliceL1(alpha=1.0).add_gradient_({"a": step})) == 0 and not step.grad.any()


def test_pruned_weights_stay_zero_and_batch_norm_is_spared() -> None:
    net = TinyNet()
    nn.init.constant_(net.bn1.weight, 1e-3)
    network = QuantizedNetwork(net, FixedPointQuantizer)
    prune(network, 0.08)
    assert bool((net.bn1.weight != 0).all())
    optimizer = optimizer_of(network, 0.1)
    gone = {name: parameter == 0 for name, parameter, _ in network.quantizers()}
    assert all(bool(each.any()) and not bool(each.all()) for each in gone.values())
    for _ in range(5):
        optimizer.zero_grad()
        network(torch.randn(8, 3, 6, 6)).square().sum().backward()
        optimizer.step()
    for name, parameter, _ in network.quantizers():
        assert not parameter[gone[name]].any()
    other = QuantizedNetwork(TinyNet(), FixedPointQuantizer)
    other.load_state_dict(network.state_dict())
    prune(other, 0.0)
    assert not other.net.conv1.weight[gone["conv1"]].any()
    with pytest.raises(ValueError, match="layer conv1: pruning at 100 leaves no weight.*quant.prune_below"):
        prune(network, 100.0)
    with pytest.raises(ValueError, match="at least 0"):
        prune(network, -1.0)


@pytest.mark.parametrize("wrong", [0, 17, 2.5, True])
def test_slices_that_do_not_exist_are_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="whole number of bits"):
        BitsliceL1(alpha=1.0, slice_bits=wrong)  # type: ignore[arg-type]


def slices_after(regularizer: Regularizer, width: int = 48, epochs: int = 15) -> tuple[float, float]:
    """Mean share of slices that are not zero, and accuracy, after the recipe."""
    network = QuantizedNetwork(float_net(width=width), FixedPointQuantizer)
    train(network, optimizer_of(network, 0.05, L1(alpha=2.0)), epochs=10)
    prune(network, 0.01)
    train(network, optimizer_of(network, 0.05, regularizer), epochs)
    codes = torch.cat([quantizer.codes().flatten() for _, _, quantizer in network.quantizers()])
    return float(nonzero_shares(codes).mean()), accuracy(network)


def test_more_alpha_empties_more_slices_and_accuracy_holds() -> None:
    """With 300 units and 25 epochs bit-slice L1 at 0.1, 0.5 and 1 ends at 0.232, 0.078 and 0.051, at 96.2 % and more.
    The paper's factor of two is not seen here: plain L1 at 2, 20 and 30 ends at 0.402, 0.090 and 0.060, as accurate."""
    found = [slices_after(BitsliceL1(alpha=alpha), width=150, epochs=10) for alpha in (0.0, 0.1, 0.5)]
    print([f"{share:.3f} at {accurate:.2f} %" for share, accurate in found])
    shares, accuracies = zip(*found, strict=True)
    assert shares[2] < 0.5 * shares[0] and shares[2] < shares[1] < shares[0]
    assert accuracies[2] > accuracies[0] - 2
