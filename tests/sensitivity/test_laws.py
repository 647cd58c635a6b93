"""Laws that every sensitivity keeps (sensitivity/base.py states them), and what each of them estimates."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsq_lightning.ops.uniform import mse_step, quantize
from bsq_lightning.sensitivity import Fisher, Hutchinson, Measured, Sensitivity, squared_errors
from tests.helpers import TinyNet, batch

SENSITIVITIES: dict[str, Callable[..., Sensitivity]] = {
    "fisher": Fisher,
    "hutchinson": partial(Hutchinson, group=8),
    "measured": Measured,
    "measured_on_labels": partial(Measured, labels="data"),
}

ALL = pytest.mark.parametrize("build", SENSITIVITIES.values(), ids=SENSITIVITIES.keys())


def weights_of(net: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name.removesuffix(".weight"), p) for name, p in net.named_parameters() if p.dim() > 1]


@ALL
def test_network_is_left_as_it_was(build: Callable[..., Sensitivity]) -> None:
    net, batches = TinyNet().train(), [batch(), batch()]
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    table = build(bits=(1, 2, 4))(net, weights_of(net), batches)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters()) and net.training
    assert table.names == ("conv1", "conv2", "fc") and table.sizes == (108, 216, 30) and table.bits == (1, 2, 4)
    assert table.costs.shape == table.steps.shape == (3, 3) and bool(torch.isfinite(table.costs).all())


@ALL
def test_same_seed_same_table(build: Callable[..., Sensitivity]) -> None:
    net, batches = TinyNet(), [batch()]
    torch.manual_seed(1)
    first = build()(net, weights_of(net), batches)
    torch.manual_seed(2)
    assert torch.equal(build()(net, weights_of(net), batches).costs, first.costs)


@ALL
def test_no_images_is_an_error(build: Callable[..., Sensitivity]) -> None:
    net = TinyNet()
    with pytest.raises(ValueError, match="at least one batch"):
        build()(net, weights_of(net), [])


@pytest.mark.parametrize("build", [Hutchinson, partial(Measured, labels="data")])
def test_missing_labels_are_an_error(build: Callable[..., Sensitivity]) -> None:
    net = TinyNet()
    with pytest.raises(ValueError, match="labels"):
        build()(net, weights_of(net), [batch()[0]])


@pytest.mark.parametrize("bits", [(), (2, 1), (1, 1), (0.5,), (17,), (-1,)])
def test_bits_that_are_none_are_refused(bits: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="bits are whole numbers"):
        Fisher(bits)


def test_squared_error_is_that_of_the_best_step() -> None:
    parameter = nn.Parameter(torch.randn(40, 7, dtype=torch.float64), requires_grad=False)
    errors, steps = squared_errors([("w", parameter)], (1, 2, 3, 8))
    for j, n in enumerate((1, 2, 3, 8)):
        step = mse_step(parameter.detach(), n)
        assert float(step) == pytest.approx(float(steps[0, j]))
        rounded = quantize(parameter.detach(), step, n) * step
        assert float((rounded - parameter).square().sum()) == pytest.approx(float(errors[0, j]))


def exact_fisher(net: nn.Module, parameter: nn.Parameter, images: Tensor) -> float:
    """The trace, with a gradient for each image and class instead of draws."""
    total = 0.0
    for image in images:
        logs = net(image.unsqueeze(0)).log_softmax(1)[0]
        for chance, log in zip(logs.exp(), logs, strict=True):
            (grad,) = torch.autograd.grad(log, parameter, retain_graph=True)
            total += float(chance.detach() * grad.square().sum()) / len(images)
    return total


def test_fisher_is_the_trace_in_the_mean() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    images = torch.randn(12, 3, 2, 2, dtype=torch.float64)
    for group, draws in ((1, 400), (4, 2000)):
        traces = Fisher(draws=draws, group=group).traces(net, weights_of(net), [images])
        for found, (_, parameter) in zip(traces, weights_of(net), strict=True):
            assert found == pytest.approx(exact_fisher(net, parameter, images), rel=0.1)


def test_hutchinson_is_the_trace_in_the_mean() -> None:
    net = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 3)).double()
    images, labels = torch.randn(16, 4, dtype=torch.float64), torch.randint(0, 3, (16,))
    traces = Hutchinson(draws=10000, group=16).traces(net, weights_of(net), [(images, labels)])
    for found, (name, parameter) in zip(traces, weights_of(net), strict=True):

        def loss(weight: Tensor, name: str = name) -> Tensor:
            return F.cross_entropy(torch.func.functional_call(net, {f"{name}.weight": weight}, images), labels)

        size = parameter.numel()
        hessian = torch.autograd.functional.hessian(loss, parameter.detach())
        assert found == pytest.approx(float(hessian.reshape(size, size).trace()), rel=0.1, abs=0.02)


def test_measured_is_the_divergence() -> None:
    net, (images, _) = TinyNet().eval().double(), batch(dtype=torch.float64)
    table = Measured(bits=(0, 2))(net, weights_of(net), [images[:3], images[3:]])
    before = net(images).softmax(1)
    with torch.no_grad():
        step = mse_step(net.fc.weight, 2)
        net.fc.weight.copy_(quantize(net.fc.weight, step, 2) * step)
    divergence = (before * (before.log() - net(images).log_softmax(1))).sum(1).mean().detach()
    assert float(table.costs[2, 1]) == pytest.approx(float(divergence), rel=1e-3)
    assert bool((table.costs >= -1e-9).all())


def test_fisher_predicts_what_is_measured() -> None:
    """At many bits the quadratic model holds: of a network with smooth activations, within a factor."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 64), nn.Tanh(), nn.Linear(64, 5)).double()
    images = torch.randn(256, 3, 2, 2, dtype=torch.float64)
    predicted = Fisher(bits=(5, 6), draws=8)(net, weights_of(net), [images]).costs
    measured = Measured(bits=(5, 6))(net, weights_of(net), [images]).costs
    assert float((predicted / measured).log().abs().max()) < 0.7
