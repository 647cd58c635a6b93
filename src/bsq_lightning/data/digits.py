"""The digits of scikit-learn: real images that come with a package, for trials without any download."""

from typing import Any

import torch
import torch.nn.functional as F

from bsq_lightning.data.base import ImageDataModule, ImageSets
from bsq_lightning.data.sampling import keyed_generator
from bsq_lightning.data.tensor_images import TensorImages

TEST_IMAGES = 360
MEAN, STD = (0.305,) * 3, (0.319,) * 3  # of all images, enlarged


class DigitsDataModule(ImageDataModule):
    """1,797 handwritten digits of 8x8 pixels, enlarged to 16 and repeated to three channels; 360 are the test set.

    Args:
        val_split: training images kept for validation, as a number or a fraction; 0 validates on the test set.
        augment: shift the training images by up to ``padding`` pixels.
        padding: see ``augment``.
        flip: mirror images; off, because digits have a direction.
        **kwargs: those of ``ImageDataModule``.

    Example:
        >>> data = DigitsDataModule(batch_size=64)
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> tuple(images.shape), data.train_size, data.val_size, data.test_size
        ((64, 3, 16, 16), 1257, 180, 360)
    """

    num_classes = 10
    image_size = 16

    def __init__(
        self,
        val_split: int | float = 180,
        augment: bool = True,
        padding: int = 1,
        flip: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(val_split=val_split, **kwargs)
        self.augment, self.padding, self.flip = augment, padding, flip

    def load_images(self) -> ImageSets:
        from sklearn.datasets import load_digits

        gray, labels = load_digits(return_X_y=True)
        pixels = torch.from_numpy(gray).float().view(-1, 1, 8, 8) * (255 / 16)
        images = F.interpolate(pixels, size=self.image_size, mode="bilinear").round().to(torch.uint8)
        images, labels = images.expand(-1, 3, -1, -1), torch.from_numpy(labels).long()
        # The test set is the same for every seed, so that runs of different seeds can be compared.
        order = torch.randperm(len(images), generator=keyed_generator("digits"))
        test, train = order[:TEST_IMAGES], order[TEST_IMAGES:]
        augmented = TensorImages(
            images[train],
            labels[train],
            MEAN,
            STD,
            augment=self.augment,
            padding=self.padding,
            flip=self.flip,
            seed=self.seed,
        )
        return ImageSets(
            augmented,
            TensorImages(augmented.images, augmented.labels, MEAN, STD),
            TensorImages(images[test], labels[test], MEAN, STD),
        )
