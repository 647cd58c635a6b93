"""CPQ and DropBits: the mode is rounding, gradients are autograd's, weights cluster, bits nest and are learned."""

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import CPQQuantizer, LatentQuantizer
from bsq_lightning.quantizers.cpq import HEAT, HIGH, LOW, freeze
from bsq_lightning.regularizers import DropBitsL0
from tests.helpers import relaxed_cpq
from tests.quantizers.digits import accuracy, float_net, optimizer_of, train

GENERATOR = torch.Generator()


def built(precision: int, n: int = 40, **settings: object) -> CPQQuantizer:
    return CPQQuantizer(torch.randn(n, dtype=torch.float64), precision=precision, **settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", [1, 2, 3, 5, 8])
def test_the_forward_is_rounding(precision: int) -> None:
    quantizer = built(precision, 100_000, dropbits=True)
    step, top = quantizer.step(), 2**precision - 1
    assert torch.equal(quantizer.weight(), step * (quantizer.latent / step).round().clamp(-top, top))
    quantizer.freeze_()
    assert torch.equal(quantizer.training_weight(GENERATOR), quantizer.weight())


def slopes(ratio: float, where: Tensor, **settings: object) -> Tensor:
    """dE/dx at places in units of the step."""
    quantizer = built(4, len(where), sigma_ratio=ratio, **settings)
    quantizer.latent.data = where * quantizer.step()
    return quantizer.latent_gradients(quantizer.weight(), torch.ones_like(where))[0]


def test_the_staircase_is_flat_at_levels_where_sigma_is_small() -> None:
    level, edge = torch.tensor([0.0, 3.0], dtype=torch.float64), torch.tensor([0.5, 3.5], dtype=torch.float64)
    assert float((slopes(16, level) / slopes(16, edge)).max()) < 0.1
    assert float((slopes(3, level) / slopes(3, edge)).min()) > 0.5


@pytest.mark.parametrize("ratio", [3.0, 8.0, 16.0, 60.0])
def test_the_analytic_gradient_is_autograds(ratio: float) -> None:
    quantizer, grad = built(3, sigma_ratio=ratio, window=15), torch.randn(40, dtype=torch.float64)
    quantizer.latent.data *= 2  # beyond the grid, too
    latents = list(quantizer.latents())
    for latent in latents:
        latent.requires_grad_(True)
    relaxed = relaxed_cpq(quantizer)
    # Far outside every bin of the slow form is an exact 0 / 0; there is nothing to compare there.
    known = torch.isfinite(relaxed.detach())
    assert int(known.sum()) > 25
    if not bool(known.all()):
        quantizer.latent.data[~known] = 0.1
        relaxed = relaxed_cpq(quantizer)
    expected = torch.autograd.grad((relaxed * grad).sum(), latents)
    for found, wanted in zip(quantizer.latent_gradients(relaxed, grad), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-5)


def test_a_window_of_two_levels_is_enough_where_sigma_is_small() -> None:
    grad = torch.randn(200, dtype=torch.float64)
    for ratio, tolerance in ((16.0, 1e-9), (8.0, 1e-4), (3.0, 0.15)):
        narrow = built(4, 200, sigma_ratio=ratio)
        wide = CPQQuantizer(narrow.latent, precision=4, sigma_ratio=ratio, window=31)
        for one, other in zip(*(q.latent_gradients(q.weight(), grad) for q in (narrow, wide)), strict=True):
            assert float((one - other).abs().max()) < tolerance * (1 + float(other.abs().max())), ratio


def test_argmax_gives_the_zero_bin_no_gradient() -> None:
    inside = torch.linspace(-0.49, 0.49, 20, dtype=torch.float64)
    assert not slopes(8, inside, backward="argmax").any()
    assert bool((slopes(8, inside) > 0).all())


def test_a_fixed_ratio_moves_sigma_with_the_step() -> None:
    quantizer, grad = built(3, learn_sigma=False), torch.randn(40, dtype=torch.float64)
    other = CPQQuantizer(quantizer.latent, precision=3)
    _, by_step = quantizer.latent_gradients(quantizer.weight(), grad)
    _, apart, by_sigma = other.latent_gradients(other.weight(), grad)
    assert torch.allclose(by_step, apart + by_sigma)
    quantizer.log_step.data += 0.3
    quantizer.project_()
    assert float(quantizer.log_step - quantizer.log_sigma) == pytest.approx(math.log(8))


def test_weights_cluster_where_sigma_is_small() -> None:
    """The measure is 0.25 where weights lie anywhere within the grid."""
    found = {}
    for name, build in {
        "ratio 3": partial(CPQQuantizer, sigma_ratio=3, learn_sigma=False),
        "ratio 8": partial(CPQQuantizer, sigma_ratio=8, learn_sigma=False),
    }.items():
        network = QuantizedNetwork(float_net(), build, precision=2)
        train(network, optimizer_of(network, 0.1), epochs=15)
        clustering = [q.clustering() for _, _, q in network.quantizers()]  # type: ignore[attr-defined]
        found[name] = (sum(clustering) / 2, accuracy(network))
    network = QuantizedNetwork(float_net(), partial(LatentQuantizer, step="mse", units="weight"), precision=2)
    train(network, optimizer_of(network, 0.1), epochs=15)
    away = []
    for _, parameter, quantizer in network.quantizers():
        assert isinstance(quantizer, LatentQuantizer)
        away.append(float((quantizer.latent - parameter.detach()).abs().mean() / quantizer.step()))
    found["straight through"] = (sum(away) / 2, accuracy(network))
    print(found)
    assert found["ratio 8"][0] < 0.22 < min(found["ratio 3"][0], found["straight through"][0])
    assert found["ratio 8"][1] > found["straight through"][1] - 2


def with_bits(*there: float) -> CPQQuantizer:
    """A quantizer of 4 bits that has drawn these Z for bits 2, 3 and 4."""
    quantizer = built(4, 400, dropbits=True)
    quantizer.latent.data *= 2
    quantizer._drawn = (torch.tensor(there, dtype=torch.float64) - LOW) / (HIGH - LOW)
    return quantizer


@pytest.mark.parametrize(
    ("there", "bits"), [((1, 1, 1), 4), ((1, 1, 0), 3), ((1, 0, 1), 2), ((0, 1, 1), 1), ((0, 0, 0), 1)]
)
def test_dropped_bits_leave_the_nearest_level_of_the_smaller_grid(there: tuple[float, ...], bits: int) -> None:
    quantizer = with_bits(*there)
    scaled, top = quantizer.latent / quantizer.step(), 2**bits - 1
    assert torch.equal(quantizer._mode(scaled, quantizer._keeps()), scaled.round().clamp(-top, top))


def relaxed_dropbits(quantizer: CPQQuantizer, noise: Tensor) -> Tensor:
    """The mean over the whole grid under one draw of the noise, with the mode in front."""
    step, sigma, x = quantizer.log_step.exp(), quantizer.log_sigma.exp(), quantizer.latent
    there = (torch.sigmoid((noise + quantizer.logits) / HEAT) * (HIGH - LOW) + LOW).clamp(0, 1)
    k = torch.arange(1 - 2**quantizer.most, 2**quantizer.most)
    keep = torch.stack([there[: max(0, int(each).bit_length() - 1)].prod() for each in k.abs()])
    k = k.double()
    upper = torch.sigmoid((step * (k + 0.5) - x[..., None]) / sigma)
    pi = (upper - torch.sigmoid((step * (k - 0.5) - x[..., None]) / sigma)) * keep
    pi = pi / pi.sum(-1, keepdim=True)
    mode = k[pi.argmax(-1)]
    mean = (pi * k * step.detach()).sum(-1)
    return mode * step + mean - mean.detach()


@pytest.mark.parametrize("seed", range(8))
def test_gradients_under_a_draw_of_bits_are_autograds(seed: int) -> None:
    torch.manual_seed(seed)
    quantizer = built(3, 50, dropbits=True, window=15, sigma_ratio=4.0, keep=0.6)
    quantizer.logits.data += torch.randn(2)
    grad = torch.randn(50, dtype=torch.float64)
    weight = quantizer.training_weight(torch.Generator().manual_seed(seed))
    uniform = torch.rand(2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    latents = list(quantizer.latents())
    assert len(latents) == 4
    for latent in latents:
        latent.requires_grad_(True)
    relaxed = relaxed_dropbits(quantizer, uniform.log() - (1 - uniform).log())
    assert torch.allclose(weight, relaxed.detach())
    expected = torch.autograd.grad((relaxed * grad).sum(), latents)
    for found, wanted in zip(quantizer.latent_gradients(weight, grad), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-7), float((found - wanted).abs().max())


def test_grids_are_as_frequent_as_their_chances() -> None:
    quantizer, generator = built(3, 3, dropbits=True), torch.Generator().manual_seed(1)
    quantizer.logits.data = torch.tensor([0.5, -1.0], dtype=torch.float64)
    shift = HEAT * math.log(-LOW / HIGH)
    second, third = (quantizer.logits - shift).sigmoid().tolist()
    counts = torch.zeros(4)
    for _ in range(10_000):
        quantizer.training_weight(generator)
        keeps = quantizer._keeps()
        assert keeps is not None
        counts[int((keeps > 0).sum()) - 1] += 1
    expected = torch.tensor([0.0, 1 - second, second * (1 - third), second * third])
    assert float((counts / 10_000 - expected).abs().max()) < 0.02


def test_what_is_measured_has_no_noise_and_draws_repeat() -> None:
    quantizer = built(4, dropbits=True)
    before = quantizer.weight()
    draws = [quantizer.training_weight(torch.Generator().manual_seed(seed)) for seed in (1, 2, 1)]
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    assert torch.equal(quantizer.weight(), before) and not quantizer.exact


def test_bits_that_are_gone_stay_away_and_move_nothing() -> None:
    quantizer = built(4, dropbits=True)
    quantizer.logits.data = torch.tensor([3.0, -4.0, 3.0], dtype=torch.float64)
    before = quantizer.weight()
    assert quantizer.precision == 2 and float(before.abs().max()) <= 3 * float(quantizer.step())
    audit = quantizer.adjust_precision_().audit
    assert torch.equal(quantizer.weight(), before) and audit["clustering"] > 0
    quantizer.logits.data.fill_(3)
    assert quantizer.precision == 2 and len(quantizer.latent_gradients(before, before)[3]) == 3
    quantizer.freeze_()
    other = built(3)
    other.load_state_dict(quantizer.state_dict())
    assert other.exact and other.precision == 2 and torch.equal(other.weight(), quantizer.weight())
    with pytest.raises(ValueError, match="2 bits cannot be brought to 3"):
        quantizer.adjust_precision_(3)


def bits_at(alpha: float) -> tuple[float, float]:
    network = QuantizedNetwork(float_net(), partial(CPQQuantizer, dropbits=True), precision=3)
    train(network, optimizer_of(network, 0.05, DropBitsL0(alpha=alpha)), epochs=20)
    freeze(network)
    return network.scheme().mean_precision, accuracy(network)


def test_bits_are_learned_and_fewer_with_more_alpha() -> None:
    found = [bits_at(alpha) for alpha in (0.0, 0.3, 1.0, 10.0)]
    print([f"{bits:.2f} bits at {accurate:.2f} %" for bits, accurate in found])
    bits = [each for each, _ in found]
    assert bits[0] == 3 and bits[-1] == 1
    assert bits == sorted(bits, reverse=True)


def test_what_does_not_fit_is_refused() -> None:
    for wrong in ({"backward": "half"}, {"sigma_ratio": 0.5}, {"window": 0}, {"keep": 1.0}):
        with pytest.raises(ValueError, match=f"quant.{next(iter(wrong))}"):
            CPQQuantizer(torch.ones(3), **wrong)
    with pytest.raises(ValueError, match="all weights are zero"):
        CPQQuantizer(torch.zeros(3))
    for quantizer in (CPQQuantizer(torch.ones(3)), CPQQuantizer(torch.ones(3), precision=1, dropbits=True)):
        with pytest.raises(ValueError, match="quant.dropbits=true"):
            DropBitsL0(1.0).check({"fc": quantizer})
