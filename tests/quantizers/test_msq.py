"""MSQ: the direction of its penalty, the course of its bits, its target, and what it costs."""

from collections.abc import Mapping
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, WeightQuantizer
from bsq_lightning.quantizers.msq import MSQQuantizer, round_clamp
from bsq_lightning.regularizers import BitGroupLasso
from bsq_lightning.regularizers.msq_lsb import LowestBitsL1
from tests.helpers import TinyNet, batch

PAIRS = pytest.mark.parametrize(("bits", "k"), [(8, 1), (4, 1), (4, 2), (3, 1), (2, 1)])


def agreement(w: Tensor, codes: Tensor, low: Tensor, low_value: Tensor, k: int) -> tuple[float, float]:
    """Of the weights with lowest bits: the share whose sign of them points away from the nearest point without them,
    and the share that descent pushes down."""
    lowest = codes - 2**k * low
    some = lowest != 0
    away = (w - low_value).sign()
    return float((lowest.sign() == away)[some].double().mean()), float((lowest > 0)[some].double().mean())


@PAIRS
def test_signs_of_lowest_bits_point_the_right_way_with_round_clamp_only(bits: int, k: int) -> None:
    w = torch.rand(200_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def papers(n: int) -> Tensor:
        return (2**n * w).round().clamp(max=2**n - 1)

    right, down = agreement(w, papers(bits), papers(bits - k), papers(bits - k) / 2 ** (bits - k), k)
    assert right == 1.0 and 0.45 < down < 0.85

    def dorefas(n: int) -> Tensor:
        return ((2**n - 1) * w).round()

    nearest = dorefas(bits - k) / (2 ** (bits - k) - 1)
    right, down = agreement(w, dorefas(bits), dorefas(bits - k), nearest, k)
    assert right < 0.95 and down > 0.85

    x = 2 * w - 1  # ours: signed, the sign beside one bit less
    low = round_clamp(x, bits - 1 - k) if bits - 1 >= k else None
    if low is not None:
        right, down = agreement(x, round_clamp(x, bits - 1), low, low / 2 ** (bits - 1 - k), k)
        assert right == 1.0 and abs(down - 0.5) < 0.01


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_codes_are_the_papers_less_their_offset(bits: int) -> None:
    weight = torch.randn(5000, dtype=torch.float64)
    quantizer = MSQQuantizer(weight, precision=bits - 1)
    w = weight / (2 * weight.abs().max()) + 0.5
    theirs = (2**bits * w).round().clamp(max=2**bits - 1) - 2 ** (bits - 1)
    shared = theirs > -(2 ** (bits - 1))
    # Halves go to the even code, which a shift by 2^(b-1) does not change.
    assert torch.equal(quantizer.codes()[shared], theirs[shared])


class Toy:
    """A small network on images that can be learned by heart, its bits adjusted every few steps."""

    def __init__(self, alpha: float, **options: float) -> None:
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 96), nn.ReLU(), nn.Linear(96, 60))
        self.network = QuantizedNetwork(net, MSQQuantizer, precision=7)
        self.regularizer = LowestBitsL1(alpha, **options)  # type: ignore[arg-type]
        self.quantizers = {name: quantizer for name, _, quantizer in self.network.quantizers()}
        self.regularizer.check(self.quantizers)
        self.regularizer.begin_interval(self.quantizers, no_traces)
        rule = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
        self.optimizer = LatentOptimizer(self.network, rule, self.regularizer)
        self.images = torch.randn(256, 64)
        self.labels = self.images[:, :60].argmax(1)

    def train(self, steps: int) -> float:
        loss = torch.zeros(())
        for _ in range(steps):
            self.optimizer.zero_grad()
            loss = nn.functional.cross_entropy(self.network(self.images), self.labels)
            loss.backward()
            self.optimizer.step()
        return loss.item()

    def adjust(self) -> dict[str, float]:
        """The share of weights with lowest bits before the adjustment, for each layer that was pressed."""
        done = self.network.adjust_precision_()
        self.regularizer.begin_interval(self.quantizers, no_traces)
        return {n: d.audit["share_with_lowest_bits"] for n, d in done.items() if d.audit["pressed_bits"]}

    def bits(self) -> list[int]:
        return list(self.network.scheme().precisions().values())


def no_traces() -> Mapping[str, float]:
    raise AssertionError("hessian=none asks for no Hessian")


def test_without_pressure_half_of_the_weights_have_a_lowest_bit_and_none_is_dropped() -> None:
    toy = Toy(alpha=0)
    for _ in range(5):
        toy.train(20)
        assert all(share == pytest.approx(0.5, abs=0.02) for share in toy.adjust().values())
    assert toy.bits() == [7, 7, 7]


def test_pressure_drops_one_bit_of_each_layer_at_an_adjustment_until_the_target_is_met() -> None:
    toy = Toy(alpha=2e-3, target_compression=10)
    seen = [toy.bits()]
    for _ in range(14):
        toy.train(40)
        shares = toy.adjust()
        seen.append(toy.bits())
        assert all(before - now in (0, 1) for before, now in zip(seen[-2], seen[-1], strict=True))
        assert all(share < 0.3 for share in shares.values()) or seen[-1] != [b - 1 for b in seen[-2]]
    assert toy.network.scheme().compression("paper") >= 10
    met = next(bits for bits in seen if 32 / (sum(bits) / 3) > 10 or bits == seen[-1])
    assert seen[-1] == met, "bits were dropped beyond the target"
    assert all(q.pressed == 0 for q in toy.quantizers.values() if isinstance(q, MSQQuantizer))
    assert toy.train(60) < 0.5
    assert float(toy.optimizer.penalty or 0.0) == 0.0


def test_as_many_parameters_as_the_float_network_has() -> None:
    net = TinyNet()
    floats = sum(parameter.numel() for parameter in net.parameters())
    network = QuantizedNetwork(net, MSQQuantizer, precision=7)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.1, momentum=0.9), LowestBitsL1(1e-3))
    images, labels = batch()
    nn.functional.cross_entropy(network(images), labels).backward()
    optimizer.step()
    trained = [parameter for group in optimizer.inner.param_groups for parameter in group["params"]]
    assert sum(parameter.numel() for parameter in trained) == floats
    assert sum(state["momentum_buffer"].numel() for state in optimizer.inner.state.values()) == floats


def test_layers_below_the_mean_sensitivity_lose_two_bits_at_once_and_a_resumed_run_knows_which() -> None:
    network = QuantizedNetwork(TinyNet(), MSQQuantizer, precision=5)
    quantizers = {name: quantizer for name, _, quantizer in network.quantizers()}
    regularizer = LowestBitsL1(1e-3, hessian="hutchinson")
    regularizer.begin_interval(quantizers, lambda: {"conv1": 100.0, "conv2": 0.1, "fc": 0.2})
    pressed = {name: quantizer.pressed for name, quantizer in quantizers.items()}  # type: ignore[attr-defined]
    assert pressed == {"conv1": 1, "conv2": 2, "fc": 2}
    other = QuantizedNetwork(TinyNet(), MSQQuantizer, precision=7)
    other.load_state_dict(network.state_dict())
    assert {name: q.pressed for name, _, q in other.quantizers()} == pressed  # type: ignore[attr-defined]
    with torch.no_grad():
        conv2 = quantizers["conv2"]
        conv2.latents()[0].copy_(round_clamp(conv2.latents()[0] / conv2.scale, 3) / 8 * conv2.scale)
    assert conv2.adjust_precision_().may_move and conv2.precision == 3


def test_the_last_bits_stay() -> None:
    quantizer = MSQQuantizer(torch.tensor([1.0, 0.1, -0.1]), precision=2, lowest_bits=2, min_precision=1)
    assert quantizer.pressed == 1
    quantizer = MSQQuantizer(torch.tensor([1.0, 0.1, -0.1]), precision=1)
    assert quantizer.pressed == 0 and quantizer.adjust_precision_().may_move == ""


def test_an_optimizer_is_resumed_where_a_layer_has_lost_its_last_bit() -> None:
    network = QuantizedNetwork(TinyNet(), partial(MSQQuantizer, min_precision=0, threshold=1.0), precision=1)
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    optimizer = LatentOptimizer(network, sgd, LowestBitsL1(1e-3))
    quantizer = network.quantizer("fc")
    quantizer.latents()[0].data[0] = 0.1 * quantizer.latents()[0].data.abs().max()  # not all at the largest code
    assert quantizer.adjust_precision_().may_move and quantizer.precision == 0
    images, labels = batch()
    for _ in range(2):
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    again = QuantizedNetwork(TinyNet(), partial(MSQQuantizer, min_precision=0, threshold=1.0), precision=1)
    again.load_state_dict(network.state_dict())
    resumed = LatentOptimizer(again, sgd, LowestBitsL1(1e-3))
    resumed.load_state_dict(optimizer.state_dict())
    assert not again.quantizer("fc").weight().any()


def test_traces_of_the_hessian_come_near_the_exact_ones_and_leave_nothing_behind() -> None:
    torch.manual_seed(0)
    net = TinyNet().double()
    network = QuantizedNetwork(net, MSQQuantizer, precision=6).train()
    module = QuantModule(network, num_classes=5, optimizer=partial(torch.optim.SGD, lr=0.1))
    module._trainer = type("Trainer", (), {"current_epoch": 0})()  # type: ignore[assignment]
    images, labels = batch(dtype=torch.float64)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    traces = module.hessian_traces((images, labels), samples=400)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items()) and network.training
    network.eval()

    def loss(weight: Tensor) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(net, {"fc.weight": weight}, (images,)), labels)

    exact = torch.autograd.functional.hessian(loss, net.fc.weight.detach()).reshape(30, 30).trace()
    assert traces["fc"] == pytest.approx(float(exact), rel=0.1)


@pytest.mark.parametrize(
    ("penalty", "quantizer", "words"),
    [
        (LowestBitsL1(1e-3), BitPlaneQuantizer, "needs the codes of quant=msq; use reg=bit_group_lasso"),
        (LowestBitsL1(1e-3), LatentQuantizer, "needs the codes of quant=msq; use reg=none"),
        (BitGroupLasso(1e-3), MSQQuantizer, "needs bit planes .* use reg=msq_lsb"),
        (LowestBitsL1(1e-3, target_compression=4), MSQQuantizer, "is met before any training: .* 4.57 x"),
    ],
)
def test_what_does_not_belong_together_says_what_does(
    penalty: LowestBitsL1 | BitGroupLasso, quantizer: type[WeightQuantizer], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        penalty.check({"fc": quantizer(torch.ones(3), precision=7)})  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"target_compression": 0.5}, "must be above 1"), ({"hessian": "exact"}, "one of none, hutchinson")],
)
def test_wrong_settings_are_refused(wrong: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        LowestBitsL1(1e-3, **wrong)
    with pytest.raises(ValueError, match="a share from 0 to 1"):
        MSQQuantizer(torch.ones(3), threshold=3)
