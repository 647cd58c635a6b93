"""The CIFAR ResNets of He et al. (2016), with one ReLU module for every place where one is applied."""

import torch.nn.functional as F
from torch import Tensor, nn


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zeros for the new channels. It has no parameters.

    Shape: ``[N, C, H, W]`` to ``[N, C + new_channels, ceil(H / 2), ceil(W / 2)]``.
    """

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.before = new_channels // 2
        self.after = new_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut around them.

    Each ReLU is a module of its own, because an activation quantizer belongs to one place in the network.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU()
        self.downsample: nn.Module = nn.Identity()
        if inputs != outputs:
            conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            projection = nn.Sequential(conv, nn.BatchNorm2d(outputs))
            self.downsample = projection if shortcut == "B" else PadShortcut(outputs - inputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.relu1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.relu2(y + self.downsample(x))


class ResNetCifar(nn.Module):
    """ResNet of ``6n + 2`` layers: three stages of ``n`` blocks with 16, 32 and 64 channels.

    Args:
        depth: number of layers with weights on the longest path: 20, 32, 44, 56, 110.
        num_classes: outputs of the last layer.
        shortcut: where a stage begins, ``B`` projects with a 1x1 convolution, ``A`` pads with zeros.
        width: how many times as many channels.

    Raises:
        ValueError: no such depth, shortcut or width.

    Shape: ``[N, 3, H, W]`` to ``[N, num_classes]``, for images of any size.

    Example:
        >>> import torch
        >>> ResNetCifar(20)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    #: One ReLU module for each use, so that each has a name of its own.
    relu_per_use = True

    def __init__(self, depth: int, num_classes: int = 10, shortcut: str = "B", width: int = 1) -> None:
        super().__init__()
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f"a CIFAR ResNet has 6n + 2 layers, not {depth}: take depth 20, 32, 44, 56 or 110")
        if shortcut not in ("A", "B"):
            raise ValueError(f"model.shortcut is A (zero padding) or B (1x1 convolution), not {shortcut!r}")
        if width < 1:
            raise ValueError(f"model.width is how many times as many channels, at least 1, not {width}")
        blocks, c = (depth - 2) // 6, 16 * width
        self.conv1 = nn.Conv2d(3, c, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(c)
        self.relu = nn.ReLU()
        self.layer1 = _stage(c, c, blocks, 1, shortcut)
        self.layer2 = _stage(c, 2 * c, blocks, 2, shortcut)
        self.layer3 = _stage(2 * c, 4 * c, blocks, 2, shortcut)
        self.fc = nn.Linear(4 * c, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int, shortcut: str) -> nn.Sequential:
    first = BasicBlock(inputs, outputs, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)))


def resnet20(num_classes: int = 10, shortcut: str = "B") -> ResNetCifar:
    """ResNet-20, 0.27 million parameters; see ``ResNetCifar``."""
    return ResNetCifar(20, num_classes, shortcut)


def resnet32(num_classes: int = 10, shortcut: str = "B") -> ResNetCifar:
    """ResNet-32, 0.47 million parameters; see ``ResNetCifar``."""
    return ResNetCifar(32, num_classes, shortcut)


def resnet44(num_classes: int = 10, shortcut: str = "B") -> ResNetCifar:
    """ResNet-44, 0.66 million parameters; see ``ResNetCifar``."""
    return ResNetCifar(44, num_classes, shortcut)


def resnet56(num_classes: int = 10, shortcut: str = "B") -> ResNetCifar:
    """ResNet-56, 0.86 million parameters; see ``ResNetCifar``."""
    return ResNetCifar(56, num_classes, shortcut)


def resnet110(num_classes: int = 10, shortcut: str = "B") -> ResNetCifar:
    """ResNet-110, 1.73 million parameters; see ``ResNetCifar``."""
    return ResNetCifar(110, num_classes, shortcut)
