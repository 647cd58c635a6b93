"""LSQ against its paper: start, grid, and who decays and scales the step."""

import math
from functools import partial

import pytest
import torch

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer
from bsq_lightning.quantizers.clipped_activation import ClippedActivation
from bsq_lightning.quantizers.lsq import LSQQuantizer
from bsq_lightning.quantizers.lsq_activation import LSQActivation
from tests.helpers import TinyNet


@pytest.mark.parametrize("precision", [1, 2, 3, 7])
def test_it_starts_and_rounds_as_the_papers_of_one_bit_more(precision: int) -> None:
    weight = torch.randn(40, 3, dtype=torch.float64)
    top = 2 ** (precision + 1 - 1) - 1  # Q_P of the paper's b = precision + 1 bits
    step = 2 * weight.abs().mean() / math.sqrt(top)
    quantizer = LSQQuantizer(weight, precision)
    assert torch.equal(quantizer.step(), step)
    papers = (weight / step).clamp(-top - 1, top).round() * step
    only_theirs = papers < -(top + 0.5) * step  # the code -2^(b-1), which a sign beside the bits does not have
    assert torch.equal(quantizer.weight()[~only_theirs], papers[~only_theirs])
    assert torch.equal(quantizer.codes()[only_theirs], torch.full_like(papers, -top)[only_theirs])


def test_steps_of_channels_start_from_their_own_mean() -> None:
    weight = torch.stack([torch.ones(5), torch.full((5,), 3.0), torch.zeros(5)])
    quantizer = LSQQuantizer(weight, precision=2, per_channel=True)
    assert torch.allclose(quantizer.step(), torch.tensor([[2.0], [6.0], [0.0]]) / math.sqrt(3), atol=1e-7)
    assert not quantizer.weight()[2].any()


def test_decay_acts_on_weights_and_not_on_steps_which_have_their_own_rate() -> None:
    network = QuantizedNetwork(TinyNet().double(), partial(LSQQuantizer, step_lr_factor=0.1), precision=3)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.2, momentum=0.9, weight_decay=0.5))
    before = {name: (q.latent.clone(), q.learned_step.clone()) for name, _, q in network.quantizers()}
    optimizer.step()
    for name, _, quantizer in network.quantizers():
        assert torch.allclose(quantizer.latent, before[name][0] * 0.9, rtol=1e-12)
        assert torch.equal(quantizer.learned_step, before[name][1])
    rates = [(group["lr"], group["weight_decay"]) for group in optimizer.inner.param_groups]
    assert rates == [(0.2, 0.5), (pytest.approx(0.02), 0.0)]


def test_learning_the_step_finds_a_better_one() -> None:
    """Of a step that cuts off almost everything, by the squared error of W."""
    torch.manual_seed(0)
    target = torch.randn(2000, dtype=torch.float64)
    net = torch.nn.Sequential(torch.nn.Linear(2000, 1, bias=False)).double()
    with torch.no_grad():
        net[0].weight.copy_(target)
    network = QuantizedNetwork(net, partial(LSQQuantizer, step=0.1), precision=2)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.005))
    errors = []
    for _ in range(300):
        optimizer.zero_grad()
        error = (net[0].weight - target).square().sum()
        error.backward()
        optimizer.step()
        errors.append(float(error.detach()) / 2000)
    assert errors[-1] < 0.2 * errors[0]


def test_it_fine_tunes_what_bit_planes_found() -> None:
    network = QuantizedNetwork(TinyNet(), BitPlaneQuantizer, precision=3)
    before = [parameter.detach().clone() for _, parameter, _ in network.quantizers()]
    network.fix_scheme_(LSQQuantizer)
    for old, (_, parameter, quantizer) in zip(before, network.quantizers(), strict=True):
        assert quantizer.precision == 3 and torch.allclose(old, parameter, atol=1e-6)


@pytest.mark.parametrize("factor", [0, -1.0])
def test_a_rate_that_is_not_positive_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="step_lr_factor must be positive"):
        LSQQuantizer(torch.ones(3), step_lr_factor=factor)


def test_steps_of_activations_start_from_the_first_batch_learn_as_the_paper_says_and_do_not_decay() -> None:
    network = QuantizedNetwork(TinyNet().double(), LSQQuantizer, LSQActivation, precision=3, act_precision=2)
    quantizer: LSQActivation = next(iter(network.activation_quantizers.values())).double()  # type: ignore[assignment]
    x = torch.rand(5, 4, 3, 3, dtype=torch.float64) * 3
    quantizer(x)
    step = 2 * x.mean() / math.sqrt(3)
    assert torch.allclose(quantizer.learned_step, step)
    grad = torch.randn_like(x)
    (quantizer(x) * grad).sum().backward()
    v = (x / step).detach()
    papers = torch.where(v.abs() < 3, v.round() - v, v.sign() * 3)
    expected = (papers * grad).sum() / math.sqrt(4 * 3 * 3 * 3)
    assert torch.allclose(quantizer.learned_step.grad, expected, rtol=1e-12)  # type: ignore[arg-type]
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.1, weight_decay=0.5))
    optimizer.step()
    assert torch.allclose(quantizer.learned_step, step - 0.1 * expected, rtol=1e-12)
    assert quantizer.clip_value() == pytest.approx(3 * float(step - 0.1 * expected))


def test_a_loaded_step_is_not_started_anew() -> None:
    first, other = LSQActivation(4), LSQActivation(4)
    first(torch.ones(2, 3))
    other.load_state_dict(first.state_dict())
    other(torch.full((2, 3), 100.0))
    assert torch.equal(other.learned_step, first.learned_step)


def test_a_step_of_activations_below_its_floor_comes_back_and_is_kept_at_a_resume() -> None:
    quantizer = LSQActivation(4)
    x = torch.rand(8, 5)
    quantizer(x)
    quantizer.learned_step.data.fill_(-0.01)
    (quantizer(x) - x).square().mean().backward()
    assert float(quantizer.learned_step.grad) < 0  # descent makes it grow
    other = LSQActivation(4)
    other.load_state_dict(quantizer.state_dict())
    other(x)
    assert other.learned_step.item() == pytest.approx(-0.01)


def test_a_clip_is_chosen_from_all_columns_of_the_images() -> None:
    quantizer = ClippedActivation(4)
    images = torch.zeros(64, 4, 64, 64)  # eight times as many values as the choice looks at
    images[..., 1::2] = torch.rand(64, 4, 64, 32)
    quantizer(images)
    assert 0.5 < quantizer.clip_value() < 1.1
