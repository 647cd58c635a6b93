"""Bit operations against a count by hand: what each layer reads follows from the architecture."""

from functools import partial

import pytest
import torch
from torch import nn

from bsq_lightning.models import resnet20
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import BitPlaneQuantizer, relu6_or_pact
from bsq_lightning.scheme import Scheme
from tests.helpers import TinyNet


def by_hand(bits: int, act: int) -> float:
    """ResNet-20 on 32 pixels: 3 stages of 3 blocks, weights with sign, shortcuts float, the stem's ReLU float."""
    total = 9 * 3 * 16 * 32**2 * (bits + 1) * 8  # the stem reads pixels
    channels, side = 16, 32
    for stage, width in enumerate((16, 32, 64)):
        for block in range(3):
            stride = 2 if stage and not block else 1
            side //= stride
            reads = 32 if not stage and not block else act  # the first block reads the stem's float ReLU
            total += 9 * channels * width * side**2 * (bits + 1) * reads
            total += 9 * width * width * side**2 * (bits + 1) * act
            if stride == 2:
                total += channels * width * side**2 * 32 * 32
            channels = width
    return (total + 640 * (bits + 1) * act) / 1e9


@pytest.mark.parametrize(("bits", "act"), [(8, 4), (2, 4), (3, 2)])
def test_resnet20_is_counted_as_by_hand(bits: int, act: int) -> None:
    network = QuantizedNetwork(
        resnet20(), BitPlaneQuantizer, relu6_or_pact, precision=bits, act_precision=act, skip=["*.downsample.0"],
        float_activations=["relu"],
    )  # fmt: skip
    network.count_macs_(32)
    assert network.scheme().gbops == pytest.approx(by_hand(bits, act), rel=1e-12)
    assert Scheme.from_json(network.scheme().to_json()).gbops == network.scheme().gbops


def test_where_the_first_layer_is_skipped_no_other_reads_pixels() -> None:
    network = QuantizedNetwork(
        TinyNet(), BitPlaneQuantizer, relu6_or_pact, precision=2, act_precision=4, skip=["conv1"]
    )
    network.count_macs_(6)
    assert {layer.name: layer.bits_of_input for layer in network.scheme().layers} == {"conv2": 4, "fc": 4}
    stem = 9 * 3 * 4 * 36
    assert network.scheme().gbops == pytest.approx((stem * 32 * 32 + (9 * 4 * 6 * 36 + 30) * 3 * 4) / 1e9, rel=1e-12)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)
        self.two.weight = self.one.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.two(self.one(x)).mean((2, 3))


def test_a_tied_layer_costs_its_operations_and_no_bits() -> None:
    network = QuantizedNetwork(Tied(), BitPlaneQuantizer, precision=3)
    network.count_macs_(2)
    scheme = network.scheme()
    assert scheme.bits("paper") == 27
    assert scheme.gbops == pytest.approx((36 * 4 * 8 + 36 * 4 * 32) / 1e9)  # the second one reads floats


def test_foreign_networks_are_quantized_at_inputs() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1), nn.Flatten(), nn.Linear(16, 2))
    network = QuantizedNetwork(net, BitPlaneQuantizer, partial(relu6_or_pact), act_precision=5)
    network.count_macs_(2)
    assert [layer.bits_of_input for layer in network.scheme().layers] == [8, 5, 5]
