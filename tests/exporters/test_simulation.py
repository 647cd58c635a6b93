"""The simulation that every format is held to: it is what activation quantizers compute, and folding keeps it."""

import copy

import pytest
import torch
from torch import nn

from bsq_lightning.exporters import fold_batch_norm, hook_activations_, simulated
from bsq_lightning.exporters.agreement import compare
from bsq_lightning.exporters.pair import Rounding
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState, QuantizedTensor
from bsq_lightning.quantizers import ActivationQuantizer
from bsq_lightning.quantizers.activation import PACT, ReLU6Quantizer
from tests.exporters.pairs import deep, shaken, tiny


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8, 16])
@pytest.mark.parametrize("size", [0.0, 0.37, 3.0])
@pytest.mark.parametrize("kind", ["plain", "relu6", "pact"])
def test_rounding_is_that_of_the_quantizers(bits: int, size: float, kind: str) -> None:
    quantizer = {"plain": ActivationQuantizer, "relu6": ReLU6Quantizer, "pact": lambda n: PACT(n, 1.3)}[kind](bits)
    quantizer.eval()
    quantizer.range.fill_(size)
    clip = {"plain": None, "relu6": 6.0, "pact": float(torch.tensor(1.3))}[kind]
    rounding = Rounding(QuantizedActivation("relu", "output", bits, clip, float(quantizer.range)))
    for x in (5 * torch.randn(10_000), torch.linspace(-8, 8, 9999), torch.zeros(3)):
        assert torch.equal(rounding(x), quantizer(x))


def test_the_networks_own_quantizers_are_replaced_and_stay_with_the_network() -> None:
    net, state, x = tiny()
    quantizer = ReLU6Quantizer(2).eval()
    net.get_submodule("relu").register_forward_hook(quantizer.after_layer)
    with_it = net(x)
    assert not torch.equal(simulated(net, state)(x), with_it)
    assert torch.equal(net(x), with_it)
    assert torch.equal(simulated(net, state)(x), hook_activations_(net, state.activations)(x))


def test_a_site_that_is_not_there_is_named() -> None:
    net, _, _ = tiny()
    with pytest.raises(ValueError, match="TinyNet has no module 'relu9'"):
        hook_activations_(net, [QuantizedActivation("relu9", "output", 4, None, 1.0)])
    with pytest.raises(ValueError, match="relu: quantized at its 'end'"):
        hook_activations_(net, [QuantizedActivation("relu", "end", 4, None, 1.0)])


@pytest.mark.parametrize("sign", ["extra", "inside"])
def test_a_folded_network_computes_the_same(sign: str) -> None:
    net, state, x = deep(act_bits=0)
    tensors = {
        name: QuantizedTensor(each.codes, each.step, each.precision + (sign == "inside"), sign) if each.precision
        else each for name, each in state.tensors.items()
    }  # fmt: skip
    state = QuantizedState(tensors, (), state.float_parameters)
    folded, folded_state = fold_batch_norm(net, state)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    assert any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
    with torch.no_grad():
        expected, found = net(x), folded(x)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))
    for name, tensor in folded_state.tensors.items():
        tensor.check(name)
        assert torch.equal(tensor.dequantize(), folded.get_submodule(name).weight)
        assert bool((tensor.step >= 0).all())
    free = sum(p.numel() for p in folded.parameters()) - sum(t.codes.numel() for t in folded_state.tensors.values())
    assert folded_state.float_parameters == free


def test_the_smallest_code_of_a_sign_inside_gets_a_bit_more() -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 1, bias=False), nn.BatchNorm2d(2)).eval()
    codes = torch.tensor([-4, 3], dtype=torch.int32).view(2, 1, 1, 1)
    state = QuantizedState({"0": QuantizedTensor(codes, torch.tensor(1.0), 3, "inside")})
    with torch.no_grad():
        net[0].weight.copy_(codes)
        net[1].weight.copy_(torch.tensor([-1.0, 1.0]))
    folded = fold_batch_norm(net, state)[1].tensors["0"]
    assert folded.precision == 4 and folded.codes.flatten().tolist() == [4, 3]


def test_only_what_directly_follows_is_folded() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.one, self.shared = nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.conv(x)
            return self.one(y) + y + self.shared(self.shared(x))

    net = shaken(Twice())
    x = torch.randn(2, 2, 3, 3)
    folded, _ = fold_batch_norm(net, QuantizedState({}))
    assert torch.equal(folded(x), net(x)) and isinstance(folded.get_submodule("one"), nn.BatchNorm2d)


def test_a_network_that_cannot_be_traced_is_named() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(ValueError, match="Branch cannot be traced .* export it without folding"):
        fold_batch_norm(Branch(), QuantizedState({}))


def test_comparison_counts_ties_and_finds_errors_where_they_are() -> None:
    net, state, x = tiny()
    led: dict[str, list[torch.Tensor]] = {}

    class Recorded(Rounding):
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            steps, step = self.unrounded(x)
            led[self.activation.site] = [steps.round()]
            return steps.round() * step

    logits = hook_activations_(copy.deepcopy(net), state.activations, Recorded)(x).detach()
    same = compare(net, state, x, led, logits)
    assert same.differ == 0 and same.logits == same.free == 0 and same.top1 == 1
    same.check("nothing", 0, 0)
    led["relu"][0][0, 0, 0, 0] += 3
    other = compare(net, state, x, led, logits)
    assert [site.differ for site in other.sites] == [1, 0] or other.sites[1].differ > 0
    assert 2.5 <= other.sites[0].beyond <= 3.0
    with pytest.raises(ValueError, match="a stranger does not compute the quantized network: at relu 1 of 1024 codes"):
        other.check("a stranger", 1e-5, 1e-4)
    with pytest.raises(ValueError, match="logits differ by"):
        compare(net, state, x, {k: [v[0]] for k, v in led.items()}, logits + 1).check("a stranger", 1, 1e-4)
