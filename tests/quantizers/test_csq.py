"""CSQ: constants stay, soft becomes hard without loss, the budget is reached from both sides."""

from functools import partial

import pytest
import torch

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantized_tensor import Planes
from bsq_lightning.quantizers import BitPlaneQuantizer, CSQQuantizer
from bsq_lightning.quantizers.csq import harden
from bsq_lightning.regularizers import CSQBudget
from tests.helpers import TinyNet, relaxed_csq
from tests.quantizers.digits import accuracy, float_net, optimizer_of, train

GENERATOR = torch.Generator()


def moved(precision: int = 5) -> CSQQuantizer:
    quantizer = CSQQuantizer(torch.randn(6, 4, 3, dtype=torch.float64), precision=precision)
    quantizer.planes.data.normal_(std=0.2)
    quantizer.mask.data.normal_(std=0.2)
    return quantizer


@pytest.mark.parametrize("progress", [0.0, 0.3, 0.6])
def test_gradients_at_every_temperature(progress: float) -> None:
    quantizer, grad = moved(), torch.randn(6, 4, 3, dtype=torch.float64)
    quantizer.on_epoch(progress)
    assert quantizer.temperature == pytest.approx(200 ** (progress / 0.99))
    for latent in quantizer.latents():
        latent.requires_grad_(True)
    soft = relaxed_csq(quantizer)
    assert torch.allclose(quantizer.training_weight(GENERATOR), soft.detach(), rtol=1e-12, atol=1e-15)
    expected = torch.autograd.grad((soft * grad).sum(), list(quantizer.latents()))
    for found, wanted in zip(quantizer.latent_gradients(soft, grad), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-10, atol=1e-14)


def test_from_the_ticket_on_planes_are_in_or_out_and_bits_go_on() -> None:
    quantizer, grad = moved(), torch.randn(6, 4, 3, dtype=torch.float64)
    quantizer.mask.data[1] = -1
    quantizer.on_epoch(1.0)
    assert set(quantizer.plane_weights().tolist()) <= {0.0, 1.0}
    planes, mask, _ = quantizer.latent_gradients(quantizer.weight(), grad)
    assert not mask.any() and not planes[:, 1].any() and planes.any()


def test_hardening_moves_no_hard_weight_and_leaves_whole_codes() -> None:
    quantizer = moved(6)
    quantizer.mask.data = torch.tensor([-1.0, 1, -1, 1, 1, -1], dtype=torch.float64)
    quantizer.planes.data[:, 3] = -1  # in, and empty
    quantizer.planes.data[0] = torch.where(quantizer.planes.data[1] > 0, -1, quantizer.planes.data[0])
    quantizer.planes.data[1, :, :3] = -1
    quantizer.planes.data[0, :, 3:] = -1  # every weight has bits of one sign
    before = quantizer.weight()
    assert quantizer.tensor().extra == Planes((1, 3, 4)) and not quantizer.exact
    quantizer.harden_()
    assert torch.equal(quantizer.weight(), before) and quantizer.exact
    assert quantizer.tensor().extra == Planes((1, 4)) and quantizer.precision == 2
    units = quantizer.weight() / quantizer.scale * 63
    assert float((units - units.round()).abs().max()) < 1e-6
    quantizer.on_epoch(0.0)  # of the next stage
    assert torch.equal(quantizer.training_weight(GENERATOR), before)
    (scale,) = quantizer.latents()
    assert scale is quantizer.scale


def test_bits_of_both_signs_are_counted_as_they_are_stored() -> None:
    quantizer = CSQQuantizer(torch.tensor([31.0, 0.0]), precision=5)
    quantizer.mask.data = torch.tensor([-1.0, 1, -1, -1, 1])
    quantizer.planes.data = torch.full_like(quantizer.planes, -1)
    quantizer.planes.data[0, 4, 0] = quantizer.planes.data[1, 1, 0] = 1
    for _ in range(2):
        tensor = quantizer.tensor()
        assert quantizer.codes().tolist() == [14, 0] and (tensor.codes * tensor.step).tolist() == [14.0, 0.0]
        quantizer.harden_()
    assert quantizer.alive == (1, 2, 3) and quantizer.precision == 3


def test_hardening_happens_at_the_last_epochs_adjustment_only() -> None:
    quantizer = moved()
    quantizer.on_epoch(0.5)
    audit = quantizer.adjust_precision_().audit
    assert not quantizer.hardened and 0 < audit["distance_from_hard"] <= 0.5
    quantizer.on_epoch(1.0)
    quantizer.adjust_precision_()
    assert quantizer.hardened
    loaded = moved(3)
    loaded.load_state_dict(quantizer.state_dict())
    assert loaded.exact and torch.equal(loaded.weight(), quantizer.weight())


def test_nothing_but_logits_and_the_scale_is_trained_and_constants_stay() -> None:
    network = QuantizedNetwork(TinyNet(), CSQQuantizer, precision=4)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.1))
    quantizer = network.quantizer("fc")
    assert isinstance(quantizer, CSQQuantizer)
    assert {name for name, _ in quantizer.named_parameters()} == {"planes", "mask", "scale"}
    scale = float(quantizer.scale)
    before = quantizer._constants().clone()
    for _ in range(100):
        optimizer.step()
    assert torch.equal(quantizer._constants(), before)
    assert torch.equal(before, torch.tensor([1.0, 2.0, 4.0, 8.0]) / 15)
    assert float(quantizer.scale) == scale and not quantizer.mask.any()  # no gradient, no decay


def test_soft_and_hard_agree_at_the_end() -> None:
    network = QuantizedNetwork(float_net(), CSQQuantizer)
    optimizer = optimizer_of(network, 0.1, CSQBudget(alpha=0.1, target_bits=3))
    train(network, optimizer, epochs=40)
    network.write_training_weights_(GENERATOR)
    soft = accuracy(network)
    network.hold_weights_()
    hard = accuracy(network)
    worst = max(q.distance() for _, _, q in network.quantizers())  # type: ignore[attr-defined]
    harden(network)
    print(f"soft {soft:.2f} %, hard {hard:.2f} %, distance of bits {worst:.3f}, {network.scheme().mean_precision} bits")
    assert abs(soft - hard) < 0.5 and hard > 90
    assert accuracy(network) == hard and network.exact


@pytest.mark.parametrize("weighting", ["parameters", "layers"])
@pytest.mark.parametrize("start", [0.3, -0.3])
def test_the_budget_is_reached_from_both_sides(start: float, weighting: str) -> None:
    """The budget alone, without a task; masks begin all in, or all out."""
    quantizers = {str(n): CSQQuantizer(torch.randn(n, 7), precision=8) for n in (40, 44, 50, 47, 42, 60, 55, 49)}
    for quantizer in quantizers.values():
        quantizer.mask.data.fill_(start).add_(0.05 * torch.randn(8))
    masks = [quantizer.mask for quantizer in quantizers.values()]
    budget = CSQBudget(alpha=1.0, target_bits=2, weighting=weighting)
    for step in range(400):
        for mask in masks:
            mask.requires_grad_(True)
        grads = torch.autograd.grad(budget.penalty(quantizers), masks)
        with torch.no_grad():
            for quantizer, grad in zip(quantizers.values(), grads, strict=True):
                quantizer.mask.requires_grad_(False).sub_(grad, alpha=0.02)
                quantizer.on_epoch(0.3 * step / 400)
    sizes = [1 if weighting == "layers" else q.planes[0, 0].numel() for q in quantizers.values()]
    bits = sum(s * q.precision for s, q in zip(sizes, quantizers.values(), strict=True)) / sum(sizes)
    assert bits == pytest.approx(2, abs=0.3)


def test_the_sign_of_the_pressure_flips_at_the_budget() -> None:
    quantizer = CSQQuantizer(torch.randn(5, 7), precision=8)
    signs = {}
    for alive in range(9):
        quantizer.mask.data = torch.where(torch.arange(8) < alive, 0.5, -0.5)
        quantizer.mask.requires_grad_(True)
        (grad,) = torch.autograd.grad(CSQBudget(alpha=1.0, target_bits=3).penalty({"a": quantizer}), quantizer.mask)
        signs[alive] = {float(each) for each in grad.sign()}
    assert all(signs[alive] == ({1.0} if alive > 3 else {0.0} if alive == 3 else {-1.0}) for alive in range(9))


def test_weights_count_in_the_budget_and_layers_do_in_the_authors() -> None:
    large, small = CSQQuantizer(torch.randn(30), precision=4), CSQQuantizer(torch.randn(10), precision=4)
    large.mask.data.fill_(-1)  # 30 weights at 0 bits, 10 at 4: a mean of 1 bit, and of 2 bits over layers
    both = {"large": large, "small": small}
    out, half = float(torch.tensor(-1.0).sigmoid()), 0.5
    pressed = 2 * (0.75 * 4 * out + 0.25 * 4 * half)
    assert float(CSQBudget(1.0, 0).penalty(both)) == pytest.approx(1 / 4 * pressed)
    assert float(CSQBudget(1.0, 0, "layers").penalty(both)) == pytest.approx(2 / 4 * (4 * out + 4 * half))


def test_what_does_not_fit_is_refused() -> None:
    quantizers = {"fc": CSQQuantizer(torch.ones(3), precision=4)}
    with pytest.raises(ValueError, match="above the 4 bits that there are"):
        CSQBudget(1.0, target_bits=5).check(quantizers)
    with pytest.raises(ValueError, match="quant=csq"):
        CSQBudget(1.0).check({"fc": BitPlaneQuantizer(torch.ones(3))})
    with pytest.raises(ValueError, match="parameters, layers"):
        CSQBudget(1.0, weighting="sizes")
    with pytest.raises(ValueError, match="all weights are zero"):
        CSQQuantizer(torch.zeros(3))
    for wrong in ({"logit": 0.0}, {"final_temperature": 0.5}, {"ticket": 0.0}):
        with pytest.raises(ValueError, match="quant."):
            CSQQuantizer(torch.ones(3), **wrong)
