"""Float architectures for small images, and a strict reader of float weights (imports torch only)."""

from bsq_lightning.models.resnet_cifar import ResNetCifar, resnet20, resnet32, resnet44, resnet56, resnet110
from bsq_lightning.models.vgg_cifar import VGGCifar, vgg19_bn
from bsq_lightning.models.weights import load_float_weights

__all__ = [
    "ResNetCifar",
    "VGGCifar",
    "load_float_weights",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "vgg19_bn",
]
