"""Images in folders by class, such as ImageNet, decoded when they are asked for."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bsq_lightning.data.base import ImageDataModule, ImageSets
from bsq_lightning.data.sampling import BatchDataset, BatchKey, keyed_seed
from bsq_lightning.data.tensor_images import Normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which pretrained networks expect


class FolderImages(BatchDataset):
    """Files of images; a batch is decoded, transformed image by image, stacked and normalized.

    Args:
        samples: path and label of every image.
        transform: PIL image to uint8 ``[3, S, S]``; it draws from torch's global generator.
        seed: of what the transform draws for an image, together with epoch and index.
    """

    def __init__(self, samples: list[tuple[str, int]], transform: Callable[[Any], Tensor], seed: int) -> None:
        self.samples, self.transform, self.seed = samples, transform, seed
        self.normalize = Normalize(MEAN, STD)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        epoch, indices = key
        pixels = torch.stack([self._image(epoch, index) for index in indices.tolist()])
        return self.normalize(pixels), torch.tensor([self.samples[index][1] for index in indices.tolist()])

    def _image(self, epoch: int, index: int) -> Tensor:
        from PIL import Image

        path = self.samples[index][0]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except Exception as error:  # each image format fails in its own way
            raise ValueError(
                f"cannot decode the image {path} ({type(error).__name__}: {error}): repair it or take it away"
            ) from error
        # The fork gives the global generator back as it was; seeding it directly leaves a GPU's generator alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(keyed_seed("augmentation", self.seed, epoch, index))
            return self.transform(image)


class ImageFolderDataModule(ImageDataModule):
    """Any images in ``root/train/CLASS/`` and ``root/val/CLASS/``; the ``val`` folder is the test set.

    Validation images are split off the training images. Training crops an area of random size and flips; evaluation
    takes the middle of the image.

    Args:
        root: folder with ``train`` and ``val``; None is ``$BSQ_DATA`` or ``./data``.
        image_size: side of the images that the network gets.
        resize: length of the shorter side before the middle is cut out in evaluation.
        augment: crop and flip the training images at random.
        val_split: training images kept for validation, as a number or a fraction; 0 validates on the test set.
        eval_batch_size: validation or test images per step and rank.
        **kwargs: those of ``ImageDataModule``.

    Raises:
        ValueError: the crop does not fit into the resized image, or (at the first use) the classes of ``train`` and
            ``val`` differ.
        FileNotFoundError: a folder is missing or has no classes with images (at the first use).
    """

    def __init__(
        self,
        root: str | None = None,
        image_size: int = 224,
        resize: int = 256,
        augment: bool = True,
        val_split: int | float = 0.1,
        eval_batch_size: int = 100,
        **kwargs: Any,
    ) -> None:
        super().__init__(val_split=val_split, eval_batch_size=eval_batch_size, **kwargs)
        if not 0 < image_size <= resize:
            raise ValueError(f"data.image_size={image_size} must be positive and at most data.resize={resize}")
        self.root = Path(root or os.environ.get("BSQ_DATA", "data")).expanduser()
        self.image_size, self.resize, self.augment = image_size, resize, augment

    @cached_property
    def num_classes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Number of class folders in ``root/train``."""
        from torchvision.datasets.folder import find_classes

        try:
            return len(find_classes(str(self.root / "train"))[0])
        except OSError as error:
            raise FileNotFoundError(self._absent("train", error)) from error

    def load_images(self) -> ImageSets:
        from torchvision.transforms import v2

        train, classes = self._scan("train")
        test, test_classes = self._scan("val")
        if classes != test_classes:
            odd = sorted(set(classes) ^ set(test_classes))
            raise ValueError(
                f"{self.root}: train and val need the same class folders; {len(odd)} are in one only: {odd[:3]}"
            )
        middle = v2.Compose([v2.Resize(self.resize), v2.CenterCrop(self.image_size), v2.PILToTensor()])
        random = v2.Compose([v2.RandomResizedCrop(self.image_size), v2.RandomHorizontalFlip(), v2.PILToTensor()])
        return ImageSets(
            FolderImages(train, random if self.augment else middle, self.seed),
            FolderImages(train, middle, self.seed),
            FolderImages(test, middle, self.seed),
        )

    def default_workers(self) -> int:
        """The cores that this process may use, shared among the processes of this machine."""
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return cores // (self.trainer.num_devices if self.trainer else 1)

    def _scan(self, part: str) -> tuple[list[tuple[str, int]], list[str]]:
        """Path and label of every image of ``train`` or ``val``, and the names of the classes."""
        from torchvision.datasets import ImageFolder

        try:
            folder = ImageFolder(str(self.root / part))
        except OSError as error:
            raise FileNotFoundError(self._absent(part, error)) from error
        return folder.samples, folder.classes

    def _absent(self, part: str, error: OSError) -> str:
        return (
            f"no images by class in {self.root / part} ({error}). Set data.root to a folder with "
            "train/CLASS/*.JPEG and val/CLASS/*.JPEG, or try data=digits, which needs no files."
        )


class ImageNetDataModule(ImageFolderDataModule):
    """ImageNet with its 1,000 classes, or as many as there are folders; 10,000 training images validate.

    See ``ImageFolderDataModule``; a subset with fewer images needs a smaller ``val_split``.
    """

    def __init__(
        self, root: str | None = None, val_split: int | float = 10000, batch_size: int = 256, **kwargs: Any
    ) -> None:
        super().__init__(root, val_split=val_split, batch_size=batch_size, **kwargs)
