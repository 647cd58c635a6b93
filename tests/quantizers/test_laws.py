"""Laws that every weight quantizer keeps (quantizers/base.py states them)."""

import copy
from functools import partial

import pytest
import torch
from torch import Tensor

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import WeightQuantizer
from tests.helpers import QUANTIZERS, Case, TinyNet

ALL = pytest.mark.parametrize("case", QUANTIZERS.values(), ids=QUANTIZERS.keys())
WITH_BITS = pytest.mark.parametrize(
    ("case", "precision"),
    [pytest.param(case, bits, id=f"{name}-{bits}") for name, case in QUANTIZERS.items() for bits in case.precisions],
)


def weight() -> Tensor:
    return torch.randn(6, 4, 3, dtype=torch.float64)


@WITH_BITS
def test_weight_is_codes_times_step(case: Case, precision: int) -> None:
    quantizer = case.build(weight(), precision=precision)
    codes, step = quantizer.codes(), quantizer.step()
    assert torch.equal(quantizer.weight(), codes * step)
    assert torch.equal(codes, codes.round())
    quantizer.tensor().check("the tensor")
    assert quantizer.shape == (6, 4, 3)


@WITH_BITS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_what_leaves_training_is_the_weight_bit_for_bit(case: Case, precision: int, dtype: torch.dtype) -> None:
    quantizer = case.build(weight().to(dtype), precision=precision)
    for _ in range(3):
        tensor = quantizer.tensor()
        assert torch.equal(tensor.dequantize(), quantizer.weight()) and tensor.dequantize().dtype == dtype
        assert tensor.codes.shape == quantizer.shape
        case.disturb(quantizer)
        quantizer.project_()


@ALL
def test_quantization_is_the_nearest_level(case: Case) -> None:
    tensor = weight()
    quantizer = case.build(tensor, precision=max(case.precisions))
    rounded = case.rounded(tensor)
    inside = rounded.abs() <= quantizer.step() * (2 ** max(case.precisions) - 1)
    error = (quantizer.weight() - rounded).abs() / quantizer.step()
    assert float(error[inside].max()) <= case.level / 2 + 1e-9


@ALL
def test_a_step_moves_latents_as_autograd_says(case: Case) -> None:
    net = TinyNet().double()
    network = QuantizedNetwork(net, case.build, precision=3)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=1e-3, momentum=0.0, weight_decay=0.0))
    for name, parameter, quantizer in network.quantizers():
        # Away from the borders of the latents' range, where the projection would hide the gradient.
        grad = torch.randn_like(parameter)
        parameter.grad = grad
        for latent in quantizer.latents():
            latent.requires_grad_(True)
        expected = torch.autograd.grad((case.relaxed(quantizer) * grad).sum(), list(quantizer.latents()))
        for latent in quantizer.latents():
            latent.requires_grad_(False)
        before = [latent.clone() for latent in quantizer.latents()]
        bounds = case.bounds(quantizer)
        rates = [rate.lr_factor for rate in quantizer.latent_rates()]
        optimizer.step()
        parameter.grad = None
        for old, latent, slope, (low, high), factor in zip(
            before, quantizer.latents(), expected, bounds, rates, strict=True
        ):
            wanted = old - 1e-3 * factor * slope
            free = torch.isclose(wanted, latent, rtol=0, atol=1e-15)
            least, most = (torch.as_tensor(bound).to(wanted) for bound in (low, high))
            bounded = torch.minimum(torch.maximum(wanted, least), most)
            assert torch.allclose(latent, bounded, rtol=0, atol=1e-15), name
            assert bool(free.any()), f"{name}: nothing moved freely, so the test would see no gradient"


@ALL
def test_latents_stay_in_their_bounds(case: Case) -> None:
    quantizer = case.build(weight(), precision=max(case.precisions))
    with torch.no_grad():
        for latent in quantizer.latents():
            latent.add_(torch.randn_like(latent) * 3)
    quantizer.project_()
    for latent, (low, high) in zip(quantizer.latents(), case.bounds(quantizer), strict=True):
        assert bool((latent >= low).all()) and bool((latent <= high).all())


@ALL
def test_projection_and_adjustment_twice_are_once(case: Case) -> None:
    quantizer = case.build(weight(), precision=4)
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
def test_adjustment_moves_no_weight_or_says_why_it_may(case: Case, seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = case.build(weight().float(), precision=5)
    case.disturb(quantizer)
    quantizer.project_()
    before = quantizer.weight()
    done = quantizer.adjust_precision_()
    if not done.may_move:
        assert torch.allclose(quantizer.weight(), before, rtol=1e-6, atol=0)


@ALL
def test_an_adjustment_to_a_number_of_bits_reaches_it_or_is_refused(case: Case) -> None:
    quantizer = case.build(weight(), precision=5)
    before = copy.deepcopy(quantizer.state_dict())
    try:
        done = quantizer.adjust_precision_(3)
    except ValueError as error:
        assert "cannot be brought to 3" in str(error)
        now = quantizer.state_dict()
        assert all(torch.equal(torch.as_tensor(value), torch.as_tensor(before[key])) for key, value in now.items())
        return
    assert quantizer.precision == 3 and done.may_move
    quantizer.tensor().check("the tensor")


@ALL
def test_bits_that_go_while_it_trains_take_no_latent_with_them(case: Case) -> None:
    """An optimizer that is built anew at a resume has as many parameters as the one that went on."""
    quantizer = case.build(weight(), precision=3)
    before = len(quantizer.latents())
    quantizer.adjust_precision_()
    try:
        quantizer.adjust_precision_(1)
    except ValueError:
        return
    assert len(quantizer.latents()) == len(quantizer.latent_rates()) == before


@ALL
def test_training_weights_of_an_exact_quantizer_are_its_weights(case: Case) -> None:
    quantizer = case.build(weight(), precision=4)
    if quantizer.exact:
        assert torch.equal(quantizer.training_weight(torch.Generator()), quantizer.weight())


@ALL
def test_state_travels_between_precisions(case: Case) -> None:
    saved = case.build(weight(), precision=3)
    loaded = case.build(weight(), precision=7)
    loaded.load_state_dict(saved.state_dict())
    assert loaded.precision == 3
    assert torch.equal(loaded.codes(), saved.codes())
    assert torch.equal(loaded.weight(), saved.weight())


@ALL
@pytest.mark.parametrize("precision", [-1, 17, 2.5, "4"])
def test_precision_out_of_range_is_refused(case: Case, precision: object) -> None:
    with pytest.raises(ValueError, match="whole number of bits"):
        case.build(weight(), precision=precision)


def test_a_channel_of_zeros_stays_zero() -> None:
    tensor = weight()
    tensor[2] = 0
    for name in ("latent_scale_per_channel", "latent_weight_per_channel"):
        quantizer: WeightQuantizer = QUANTIZERS[name].build(tensor, precision=3)
        assert not quantizer.weight()[2].any() and bool(torch.isfinite(quantizer.weight()).all())
