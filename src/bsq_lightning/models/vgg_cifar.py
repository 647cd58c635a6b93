"""VGG-19 with batch normalization for 32-pixel images: one linear layer in place of the three of ImageNet."""

from torch import Tensor, nn

# Width of each convolution, stage by stage; a 2x2 max-pooling closes every stage.
VGG19_STAGES = ((64, 64), (128, 128), (256,) * 4, (512,) * 4, (512,) * 4)


class VGGCifar(nn.Module):
    """VGG of 3x3 convolutions: ``features`` and a single linear layer, ``classifier``.

    Args:
        stages: widths of the convolutions of every stage.
        num_classes: outputs of the last layer.

    Shape: ``[N, 3, H, W]`` to ``[N, num_classes]``; sides of at least ``2 ** len(stages)`` pixels.

    Example:
        >>> import torch
        >>> VGGCifar(((8,), (16, 16)), num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 5])
    """

    #: One ReLU module for each use, so that each has a name of its own.
    relu_per_use = True

    def __init__(self, stages: tuple[tuple[int, ...], ...] = VGG19_STAGES, num_classes: int = 10) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for stage in stages:
            for outputs in stage:
                # Batch normalization takes the place of the convolution's bias.
                conv = nn.Conv2d(width, outputs, 3, padding=1, bias=False)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(outputs), nn.ReLU()]
                width = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def vgg19_bn(num_classes: int = 10) -> VGGCifar:
    """VGG-19 with batch normalization, 20 million parameters; see ``VGGCifar``."""
    return VGGCifar(VGG19_STAGES, num_classes)
