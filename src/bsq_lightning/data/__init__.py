"""Images in batches, where all that is seen is a function of (seed, epoch, index)."""

from bsq_lightning.data.base import ImageDataModule
from bsq_lightning.data.cifar import CIFAR10DataModule, CIFAR100DataModule
from bsq_lightning.data.digits import DigitsDataModule
from bsq_lightning.data.image_folder import ImageFolderDataModule, ImageNetDataModule
from bsq_lightning.data.loading import EpochLoader
from bsq_lightning.data.sampling import EpochSampler, keyed_generator
from bsq_lightning.data.tensor_images import TensorImages

__all__ = [
    "CIFAR100DataModule",
    "CIFAR10DataModule",
    "DigitsDataModule",
    "EpochLoader",
    "EpochSampler",
    "ImageDataModule",
    "ImageFolderDataModule",
    "ImageNetDataModule",
    "TensorImages",
    "keyed_generator",
]
