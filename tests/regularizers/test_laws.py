"""Laws that every regularizer keeps (regularizers/base.py states them), over one list."""

from collections.abc import Callable

import pytest
import torch

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, LatentStep, WeightQuantizer
from bsq_lightning.regularizers import BitGroupLasso, Regularizer
from tests.helpers import REGULARIZERS, TinyNet

ALL = pytest.mark.parametrize(("build", "quantizer"), REGULARIZERS.values(), ids=REGULARIZERS.keys())


def begun(quantizer: Callable[..., WeightQuantizer]) -> dict[str, LatentStep]:
    """Steps of all tensors of a small network, as the optimizer begins them, with latents that are not whole bits."""
    network = QuantizedNetwork(TinyNet().double(), quantizer, precision=4)
    steps = {}
    for name, parameter, each in network.quantizers():
        for latent in each.latents():
            if latent.dim():
                latent.data.uniform_()
        each.project_()
        parameter.data.copy_(each.weight())
        steps[name] = LatentStep(each, parameter, torch.zeros_like(parameter), {})
    return steps


@ALL
def test_the_gradient_is_autograds(build: type[Regularizer], quantizer: Callable[..., WeightQuantizer]) -> None:
    """``decay`` of bit planes is unfolded to what it stands for; everything else is compared as it is."""
    torch.manual_seed(1)
    steps, expected = begun(quantizer), {}
    regularizer = build(alpha=0.3)
    quantizers = {name: step.quantizer for name, step in steps.items()}
    regularizer.check(quantizers)
    value = regularizer.add_gradient_(steps)
    if regularizer.on_weights:
        weights = {name: step.weight.detach().requires_grad_(True) for name, step in steps.items()}
        penalty = regularizer.weight_penalty(weights, quantizers)
        grads = torch.autograd.grad(penalty, list(weights.values()))
        for step, grad in zip(steps.values(), grads, strict=True):
            assert torch.allclose(step.grad, grad, rtol=1e-13)
    else:
        for each in quantizers.values():
            for latent in each.latents():
                latent.requires_grad_(True)
        penalty = regularizer.penalty(quantizers)
        flat = [latent for each in quantizers.values() for latent in each.latents()]
        grads = iter(torch.autograd.grad(penalty, flat, allow_unused=True, materialize_grads=True))
        for name, each in quantizers.items():
            expected[name] = [next(grads) for _ in each.latents()]
        for name, step in steps.items():
            found = step.penalty_gradients
            if step.decay is not None:
                planes = step.quantizer.planes.detach()
                unfolded = step.decay.view(1, -1, *[1] * (planes.dim() - 2)) * planes
                found = (unfolded, torch.zeros_like(expected[name][1]))
            assert found is not None
            for one, other in zip(found, expected[name], strict=True):
                assert torch.allclose(one, other, rtol=1e-13)
    assert torch.allclose(value, penalty.detach(), rtol=1e-14)


@ALL
def test_alpha_of_zero_presses_nothing(build: type[Regularizer], quantizer: Callable[..., WeightQuantizer]) -> None:
    steps = begun(quantizer)
    assert float(build(alpha=0).add_gradient_(steps)) == 0
    for step in steps.values():
        given = [step.grad, *(step.penalty_gradients or ()), *([] if step.decay is None else [step.decay])]
        assert not any(bool(each.any()) for each in given)


@ALL
@pytest.mark.parametrize("alpha", [-1e-3, float("nan"), float("inf"), "strong", True])
def test_alpha_must_be_a_number_that_is_not_negative(
    build: type[Regularizer], quantizer: Callable[..., WeightQuantizer], alpha: object
) -> None:
    with pytest.raises(ValueError, match="reg.alpha must be a number"):
        build(alpha=alpha)


def test_group_lasso_by_hand() -> None:
    # Two layers of 1 and 3 weights at 1 and 2 bits: alpha / 4 * (1*1*1 + 3*2*(sqrt(2) + 1))
    one = BitPlaneQuantizer(torch.tensor([1.0], dtype=torch.float64), precision=1)
    two = BitPlaneQuantizer(torch.tensor([1.0, -1 / 3, 2 / 3], dtype=torch.float64), precision=2)
    expected = 0.5 / 4 * (1 + 6 * (2**0.5 + 2**0.5))
    assert float(BitGroupLasso(alpha=0.5).penalty({"a": one, "b": two})) == pytest.approx(expected, rel=1e-7)


def test_nothing_to_press_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs bit planes"):
        BitGroupLasso(alpha=1.0).check({"fc": LatentQuantizer(torch.ones(3))})
