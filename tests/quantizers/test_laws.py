"""Laws that every weight quantizer keeps (quantizers/base.py states them)."""

from functools import partial

import pytest
import torch
from torch import Tensor

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, WeightQuantizer
from tests.helpers import QUANTIZERS, TinyNet

ALL = pytest.mark.parametrize("build", QUANTIZERS.values(), ids=QUANTIZERS.keys())


def weight() -> Tensor:
    return torch.randn(6, 4, 3, dtype=torch.float64)


@ALL
@pytest.mark.parametrize("precision", [1, 2, 5, 8])
def test_weight_is_codes_times_step(build: type[WeightQuantizer], precision: int) -> None:
    quantizer = build(weight(), precision=precision)
    codes, step = quantizer.codes(), quantizer.step()
    assert torch.equal(quantizer.weight(), codes * step)
    assert torch.equal(codes, codes.round())
    assert float(codes.abs().max()) <= 2**precision - 1
    assert quantizer.shape == (6, 4, 3)


@ALL
def test_quantization_is_the_nearest_level(build: type[WeightQuantizer]) -> None:
    tensor = weight()
    quantizer = build(tensor, precision=8)
    inside = tensor.abs() <= quantizer.step() * 255
    assert float(((quantizer.weight() - tensor).abs() / quantizer.step())[inside].max()) <= 0.5 + 1e-9


def straight_through(quantizer: WeightQuantizer) -> Tensor:
    """W as a function of the latents, with the gradients the papers prescribe, for autograd."""
    if isinstance(quantizer, BitPlaneQuantizer):
        powers = torch.exp2(torch.arange(quantizer.precision, dtype=torch.float64))
        powers = powers.view(-1, *[1] * len(quantizer.shape))
        relaxed = ((quantizer.planes[0] - quantizer.planes[1]) * powers).sum(0)
        top = 2**quantizer.precision - 1
        return quantizer.scale / top * (relaxed + (quantizer.codes() - relaxed).detach())
    assert isinstance(quantizer, LatentQuantizer)
    if quantizer.units == "weight":
        return quantizer.latent + (quantizer.weight() - quantizer.latent).detach()
    unit = quantizer.codes() / (2**quantizer.precision - 1)
    return quantizer.scale * (quantizer.latent + (unit - quantizer.latent).detach())


@ALL
def test_a_step_moves_latents_as_autograd_says(build: type[WeightQuantizer]) -> None:
    net = TinyNet().double()
    network = QuantizedNetwork(net, build, precision=3)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=1e-3, momentum=0.0, weight_decay=0.0))
    for name, parameter, quantizer in network.quantizers():
        # Away from the borders of the latents' range, where the projection would hide the gradient.
        grad = torch.randn_like(parameter)
        parameter.grad = grad
        for latent in quantizer.latents():
            latent.requires_grad_(True)
        expected = torch.autograd.grad((straight_through(quantizer) * grad).sum(), list(quantizer.latents()))
        for latent in quantizer.latents():
            latent.requires_grad_(False)
        before = [latent.clone() for latent in quantizer.latents()]
        optimizer.step()
        parameter.grad = None
        for old, latent, slope in zip(before, quantizer.latents(), expected, strict=True):
            free = (old - 1e-3 * slope == latent) | torch.isclose(old - 1e-3 * slope, latent, rtol=0, atol=1e-15)
            low, high = (0, 2) if isinstance(quantizer, BitPlaneQuantizer) and latent.dim() else (-1e9, 1e9)
            if isinstance(quantizer, LatentQuantizer) and latent.dim():
                bound = float(quantizer.scale) if quantizer.units == "weight" else 1.0
                low, high = -bound, bound
            clamped = (old - 1e-3 * slope).clamp(low, high)
            assert torch.allclose(latent, clamped, rtol=0, atol=1e-15), name
            assert bool(free.any()), f"{name}: nothing moved freely, so the test would see no gradient"


@ALL
def test_projection_and_adjustment_twice_are_once(build: type[WeightQuantizer]) -> None:
    quantizer = build(weight(), precision=4)
    with torch.no_grad():
        for latent in quantizer.latents():
            latent.add_(torch.randn_like(latent) * 0.3)
    for action in (quantizer.project_, quantizer.adjust_precision_):
        action()
        once = [latent.clone() for latent in quantizer.latents()]
        precision = quantizer.precision
        action()
        assert quantizer.precision == precision
        assert all(torch.allclose(a, b, rtol=1e-15, atol=0) for a, b in zip(once, quantizer.latents(), strict=True))


@ALL
@pytest.mark.parametrize("seed", range(10))
def test_adjustment_moves_no_weight(build: type[WeightQuantizer], seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = build(weight().float(), precision=5)
    with torch.no_grad():
        for latent in quantizer.latents():
            latent.mul_(torch.rand_like(latent) * 1.5)
        if isinstance(quantizer, BitPlaneQuantizer):
            quantizer.planes[:, :2] *= torch.rand(()) < 0.5  # empty low planes now and then
    quantizer.project_()
    before = quantizer.weight()
    if isinstance(quantizer, BitPlaneQuantizer) and quantizer.clip_always:
        quantizer.clip_always = False  # the 2021 code's jump is tested on its own
        before = quantizer.weight()
    quantizer.adjust_precision_()
    assert torch.allclose(quantizer.weight(), before, rtol=1e-6, atol=0)


@ALL
def test_state_travels_between_precisions(build: type[WeightQuantizer]) -> None:
    saved = build(weight(), precision=3)
    loaded = build(weight(), precision=7)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.precision == 3
    assert torch.equal(loaded.codes(), saved.codes())
    assert torch.equal(loaded.weight(), saved.weight())


@ALL
@pytest.mark.parametrize("precision", [-1, 17, 2.5, "4"])
def test_precision_out_of_range_is_refused(build: type[WeightQuantizer], precision: object) -> None:
    with pytest.raises(ValueError, match="whole number of bits"):
        build(weight(), precision=precision)
