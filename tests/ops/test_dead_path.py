"""Layers at 0 bits that nothing bypasses, against what the networks compute."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from bsq_lightning.models import resnet20
from bsq_lightning.ops.dead_path import cutting_layers


class Branches(nn.Module):
    """A chain, two branches that are joined, and a shortcut around the second convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right, self.around = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(4))
        self.norm, self.fc = nn.BatchNorm2d(3), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.cat([self.left(x), self.right(x)], 1)[:, :3] + self.right(x)
        x = torch.relu(x + self.around(x))
        return self.fc(x.mean((2, 3)))


def constant(net: nn.Module, empty: tuple[str, ...]) -> bool:
    """Whether the outputs of two images are equal, as the network computes them, with these layers at zero."""
    torch.manual_seed(3)
    for name, parameter in net.named_parameters():
        with torch.no_grad():
            parameter.copy_(torch.rand_like(parameter) * 0.1 + 0.01)
            if name.removesuffix(".weight") in empty:
                parameter.zero_()
    net.eval()
    one, other = net(torch.rand(2, 3, 8, 8))
    return torch.equal(one, other)


def test_a_cut_is_where_the_output_is_the_same_for_every_image() -> None:
    names = ["stem", "left", "right", "around", "fc"]
    for count in range(6):
        for empty in combinations(names, count):
            assert bool(cutting_layers(Branches(), empty, 8)) == constant(Branches(), empty), empty


@pytest.mark.parametrize(
    ("net", "empty", "cut"),
    [
        (resnet20(shortcut="A"), [f"layer{i}.{j}.conv{k}" for i in (1, 2, 3) for j in (0, 1, 2) for k in (1, 2)], []),
        (resnet20(shortcut="A"), ["conv1", "layer1.0.conv1"], ["conv1"]),
        (resnet20(shortcut="B"), ["layer2.0.conv1"], []),
        (resnet20(shortcut="B"), ["layer2.0.conv1", "layer2.0.downsample.0"],
         ["layer2.0.conv1", "layer2.0.downsample.0"]),
        (mobilenet_v2(num_classes=7), ["features.3.conv.2", "features.4.conv.2"], ["features.4.conv.2"]),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 4)), ["1.bias"], []),
    ],
)  # fmt: skip
def test_of_real_networks(net: nn.Module, empty: list[str], cut: list[str]) -> None:
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    assert cutting_layers(net, empty, 8 if len(before) < 5 else 32) == cut
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_weights_that_hide_the_path_do_not_matter() -> None:
    """A classifier that starts at zero, as some do, is no dead path."""
    net = Branches()
    nn.init.zeros_(net.fc.weight)
    nn.init.zeros_(net.norm.weight)
    assert cutting_layers(net, ["left"], 8) == []
