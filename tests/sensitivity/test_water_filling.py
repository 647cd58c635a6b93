"""Water filling: what it decides, that it reaches its size, and that a run which is killed decides the same."""

import itertools

import pytest
import torch

import bsq_lightning
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, LatentStep
from bsq_lightning.quantizers.allocated import AllocatedQuantizer
from bsq_lightning.quantizers.damage import RoundingDamage
from bsq_lightning.quantizers.filter_bits import FilterQuantizer
from bsq_lightning.sensitivity import WaterFilling


def layers(*sizes: int, precision: int = 4) -> dict[str, AllocatedQuantizer]:
    torch.manual_seed(0)
    return {f"layer{i}": AllocatedQuantizer(torch.randn(size), precision) for i, size in enumerate(sizes)}


def filters(*sizes: int, precision: int = 4) -> dict[str, AllocatedQuantizer]:
    """As ``layers``, each of four filters with bits of their own."""
    torch.manual_seed(0)
    spread = torch.tensor([[3.0], [1.0], [0.3], [0.1]])
    return {f"layer{i}": FilterQuantizer(torch.randn(4, size // 4) * spread, precision) for i, size in enumerate(sizes)}


BOTH = pytest.mark.parametrize("layers", [layers, filters], ids=["layers", "filters"])


def measured(quantizers: dict[str, AllocatedQuantizer], curvature: list[float], steps: int = 1) -> RoundingDamage:
    """The damage on a quadratic loss ``h |W - u|^2 / 2`` around the real weights: G = h e."""
    damage = RoundingDamage(every=1)
    for _ in range(steps):
        damage.add_({
            name: LatentStep(quantizer, quantizer.weight(), h * (quantizer.weight() - quantizer.relaxed()), {})
            for (name, quantizer), h in zip(quantizers.items(), curvature, strict=True)
        })  # fmt: skip
    return damage


@BOTH
def test_damage_is_that_of_a_quadratic_loss(layers):
    quantizers = layers(32, 48, precision=2)
    damage = measured(quantizers, [2.0, 0.5], steps=3).since({})
    for (name, quantizer), h in zip(quantizers.items(), [2.0, 0.5], strict=True):
        error = quantizer.weight() - quantizer.relaxed()
        assert damage[name].steps == 3
        assert damage[name].loss == pytest.approx(float(h * error.square().sum() / 2), rel=1e-5)


def test_damage_of_training_is_the_loss_of_rounding():
    """With noise in the gradient and the latents at rest, the mean of G.e / 2 is the loss above that of u."""
    torch.manual_seed(1)
    best, h = torch.randn(400), torch.rand(400) + 0.5
    quantizer = AllocatedQuantizer(best.clone(), 2)
    damage = RoundingDamage(every=1)
    for _ in range(600):
        grad = h * (quantizer.weight() - best + 0.05 * torch.randn(400))
        damage.add_({"layer": LatentStep(quantizer, quantizer.weight(), grad, {})})
    excess = float((h * (quantizer.weight() - best).square()).sum() / 2)
    assert damage.since({})["layer"].loss == pytest.approx(excess, rel=0.05)


def test_an_exchange_is_the_best_of_all_choices():
    """Against every combination of bits within one of the present ones."""
    quantizers = layers(16, 48, 32, precision=3)
    curvature = [4.0, 0.1, 1.0]
    filling = WaterFilling(mean_bits=2.5, exchanges=1, ramp=1.0, keep=1.0)
    damage = measured(quantizers, curvature)
    found = filling.exchange(1, quantizers, damage, images=1)
    bits = [found.get(name, 3) for name in quantizers]
    sizes = [16, 48, 32]

    def cost(choice: tuple[int, ...]) -> float:
        total = 0.0
        for n, (name, quantizer) in zip(choice, quantizers.items(), strict=True):
            other = AllocatedQuantizer(quantizer.relaxed(), n)
            total += filling.curvature[name] * float((other.weight() - other.relaxed()).square().sum())
        return total

    allowed = [
        choice
        for choice in itertools.product((2, 3, 4), repeat=3)
        if sum(n * size for n, size in zip(choice, sizes, strict=True)) <= 2.5 * sum(sizes)
    ]
    assert tuple(bits) in allowed
    assert cost(tuple(bits)) == pytest.approx(min(map(cost, allowed)), rel=1e-4)


@BOTH
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_curvature_on_a_quadratic_loss(layers, share: float):
    """There G = h e: the damage gives h itself, the Fisher information B h^2 |e|^2 / P."""
    quantizers, h = layers(16, 48), {"layer0": 2.0, "layer1": 0.5}
    filling = WaterFilling(mean_bits=3, exchanges=2, measured=share)
    filling.exchange(1, quantizers, measured(quantizers, list(h.values())), images=100)
    for name, quantizer in quantizers.items():
        error = (quantizer.weight() - quantizer.relaxed()).reshape(len(quantizer.row_bits()), -1)
        for k, row in enumerate(error):
            fisher = 100 * h[name] ** 2 * float(row.square().mean())
            expected = max(h[name] ** share * fisher ** (1 - share), fisher / 20)
            assert float(filling.curvature[name][k]) == pytest.approx(expected, rel=1e-5)


@BOTH
@pytest.mark.parametrize("least", [0, 1])
def test_it_reaches_its_size_and_no_row_jumps(layers, least: int):
    quantizers = layers(16, 64, 256, 48)
    filling = WaterFilling(mean_bits=1.5, exchanges=12, bits=range(least, 9))
    damage = RoundingDamage(every=1)
    filling.check(quantizers, steps=1000)
    for number in range(1, 13):
        for _ in range(3):
            damage.add_({
                name: LatentStep(q, q.weight(), torch.randn(q.shape) * 0.1 + q.weight() - q.relaxed(), {})
                for name, q in quantizers.items()
            })  # fmt: skip
        for name, bits in filling.exchange(number, quantizers, damage, images=8).items():
            before = quantizers[name].row_bits()
            quantizers[name].adjust_precision_(bits)
            moves = [abs(new - old) for new, old in zip(quantizers[name].row_bits(), before, strict=True)]
            assert max(moves) == 1
    tensors = [quantizer.tensor() for quantizer in quantizers.values()]
    assert 1 <= sum(each.magnitude_bits() for each in tensors) / sum(each.codes.numel() for each in tensors) <= 1.5
    assert all(bool(each.codes.any()) for each in tensors), "a layer was emptied"


@BOTH
def test_going_back_and_forth_forgets_nothing(layers):
    quantizer = layers(64)["layer0"]
    codes, latent = quantizer.codes(), quantizer.relaxed().clone()
    quantizer.adjust_precision_(1)
    quantizer.project_()
    assert torch.equal(quantizer.relaxed(), latent)
    quantizer.adjust_precision_(4)
    assert torch.equal(quantizer.codes(), codes)
    quantizer.adjust_precision_(1)
    quantizer.settle_()
    quantizer.project_()
    assert bool((quantizer.relaxed().abs() <= quantizer.scale * (1 + 1e-6)).all())


def test_a_filter_at_no_bits_rests_and_can_come_back():
    quantizer = FilterQuantizer(torch.tensor([[0.9, -0.4, 0.2], [0.3, 0.1, -0.2]]), 2)
    latent = quantizer.relaxed().clone()
    quantizer.adjust_precision_([2, 0])
    assert not quantizer.weight()[1].any() and not quantizer.relaxed()[1].any()
    (grad,) = quantizer.latent_gradients(quantizer.weight(), torch.ones(2, 3))
    assert grad.tolist() == [[1.0] * 3, [0.0] * 3]
    assert quantizer.tensor().magnitude_bits() == 6 and quantizer.tensor().storage_bits() == 9
    assert quantizer.tensor().side_bits() == 32 + 2 * 2  # one step, and two bits for the bits of each filter
    filling, damage = WaterFilling(mean_bits=2, exchanges=2, bits=range(9)), RoundingDamage(every=1)
    filling.curvature, filling.start = {"layer": torch.tensor([1e-6, 1.0], dtype=torch.float64)}, 2.0
    step = LatentStep(quantizer, quantizer.weight(), torch.full((2, 3), 9.0), {})
    damage.add_({"layer": step})
    assert filling.exchange(1, {"layer": quantizer}, damage, images=1)["layer"][1] == 1
    assert float(filling.curvature["layer"][1]) == 1.0, "measured where nothing can be"
    quantizer.adjust_precision_([2, 2])
    assert torch.equal(quantizer.relaxed(), latent)


def test_gradients_of_filters_that_rest_are_dropped_before_anything_sees_their_size():
    network = QuantizedNetwork(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), FilterQuantizer, precision=2
    )
    network.adjust_precision_({"0": [2, 0, 1, 0]})
    weight = network.net.get_parameter("0.weight")
    weight.grad = torch.full((4, 3), torch.inf)
    network.drop_resting_gradients_()
    assert torch.equal(weight.grad.isinf().all(1), torch.tensor([True, False, True, False]))
    assert not weight.grad[1].any()


def test_a_scheme_of_filters_is_not_taken_for_one_of_layers():
    network = QuantizedNetwork(
        torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU()), FilterQuantizer, precision=2
    )
    network.adjust_precision_({"0": [2, 0, 4, 2]})
    assert network.scheme().mean_precision == 2
    with pytest.raises(ValueError, match="layer 0 has bits for each filter"):
        network.fix_scheme_(LatentQuantizer)
    with pytest.raises(ValueError, match="mixes bits"):
        bsq_lightning.quantize(torch.nn.Sequential(torch.nn.Linear(3, 4)), precision=network.scheme())


@BOTH
def test_state_goes_through_a_checkpoint(layers):
    quantizers = layers(16, 48)
    filling, damage = WaterFilling(mean_bits=2, exchanges=4), measured(quantizers, [1.0, 2.0])
    filling.exchange(1, quantizers, damage, images=4)
    other, again = WaterFilling(mean_bits=2, exchanges=4), RoundingDamage(every=1)
    other.load_state_dict(filling.state_dict())
    again.load_state_dict(damage.state_dict())
    for each in (damage, again):
        each.add_({
            name: LatentStep(q, q.weight(), 3 * (q.weight() - q.relaxed()), {}) for name, q in quantizers.items()
        })  # fmt: skip
    assert filling.exchange(2, quantizers, damage, 4) == other.exchange(2, quantizers, again, 4)
    assert filling.state_dict() == other.state_dict()


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"mean_bits": 0.5}, "mean_bits"),
        ({"mean_bits": True}, "mean_bits"),
        ({"mean_bits": 2, "exchanges": 0}, "exchanges"),
        ({"mean_bits": 2, "until": 0}, "until"),
        ({"mean_bits": 2, "ramp": 2}, "ramp"),
        ({"mean_bits": 2, "measured": -0.5}, "measured"),
        ({"mean_bits": 2, "hold": 1}, "hold"),
        ({"mean_bits": 2, "bits": [1, 3]}, "bits"),
    ],
)
def test_wrong_settings_are_named(settings, word):
    with pytest.raises(ValueError, match=word):
        WaterFilling(**settings)


def test_filters_may_have_less_than_a_bit_on_average_but_every_layer_has_one():
    with pytest.raises(ValueError, match="above 0 and up to 16"):
        WaterFilling(mean_bits=0, bits=range(9))
    WaterFilling(mean_bits=0.3, bits=range(9), exchanges=10, ramp=1.0).check(filters(16, 64), steps=1000)
    with pytest.raises(
        ValueError, match=r"mean_bits=0.2 is below 0.25, which one bit for one filter of each layer takes"
    ):
        WaterFilling(mean_bits=0.2, bits=range(9), exchanges=10, ramp=1.0).check(filters(16, 64), steps=1000)


def test_what_cannot_be_reached_is_said_before_training():
    quantizers = layers(16, 48)
    with pytest.raises(ValueError, match="no 30 exchanges"):
        WaterFilling(mean_bits=2).check(quantizers, steps=100)
    with pytest.raises(ValueError, match="above the 4"):
        WaterFilling(mean_bits=5).check(quantizers, steps=10_000)
    with pytest.raises(ValueError, match="raise quant.exchanges"):
        WaterFilling(mean_bits=1, exchanges=3).check(quantizers, steps=10_000)
    with pytest.raises(ValueError, match="layer conv starts at 10 bits; water filling knows layers of 1 to 8"):
        WaterFilling(mean_bits=2).check({"conv": AllocatedQuantizer(torch.randn(4), 10)}, steps=10_000)
    with pytest.raises(ValueError, match="water_filling"):
        WaterFilling(mean_bits=2).check({"conv": BitPlaneQuantizer(torch.randn(4), 3)}, steps=10_000)
