"""Images in folders by class, such as ImageNet, decoded when they are asked for."""

import io
import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bsq_lightning.data.base import ImageDataModule, ImageSets
from bsq_lightning.data.broken_images import BrokenImages
from bsq_lightning.data.normalize import Normalize
from bsq_lightning.data.sampling import BatchDataset, BatchKey, keyed_seed

#: PIL goes by content, not by the name of a file, and hands PostScript over to Ghostscript.
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, which pretrained networks expect


class FolderImages(BatchDataset):
    """Files of images; a batch is decoded, transformed image by image and stacked, without those that are broken.

    Args:
        samples: path and label of every image.
        broken: says what becomes of images that cannot be decoded, and counts them.
        transform: PIL image to uint8 ``[3, S, S]``; it draws from torch's global generator.
        seed: of what the transform draws for an image, together with epoch and index.

    Raises:
        FileNotFoundError: a file has gone since the folder was listed, whatever is to happen with broken images.
        ValueError: a file cannot be read; or it cannot be decoded and is not to be skipped, or too many are, or
            nothing of its batch is left.
    """

    def __init__(
        self, samples: list[tuple[str, int]], broken: BrokenImages, transform: Callable[[Any], Tensor], seed: int
    ) -> None:
        self.samples, self.broken, self.transform, self.seed = samples, broken, transform, seed
        self.normalize = Normalize(MEAN, STD)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        epoch, indices = key
        images = [(self._image(epoch, index), self.samples[index][1]) for index in indices.tolist()]
        pixels = [image for image, _ in images if image is not None]
        if not pixels:
            first = self.samples[int(indices[0])][0]
            raise ValueError(
                f"none of the {len(images)} images of a batch can be decoded; the first is {first}: "
                "repair them, take them away, or choose a larger batch, which has others in it"
            )
        return torch.stack(pixels), torch.tensor([label for image, label in images if image is not None])

    def _image(self, epoch: int, index: int) -> Tensor | None:
        from PIL import Image

        content = _read(Path(self.samples[index][0]))
        try:
            with Image.open(io.BytesIO(content), formats=FORMATS) as file:
                image = file.convert("RGB")
        except Exception as error:  # each image format fails in its own way
            self.broken.found(index, error)
            return None
        # The fork gives the global generator back as it was; seeding it directly leaves a GPU's generator alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(keyed_seed("augmentation", self.seed, epoch, index))
            return self.transform(image)


def _read(path: Path) -> bytes:
    """The file's bytes. Failing to read is not the image's fault and never skipped: the next ones would fail too."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        gone = [place for place in (path, *path.parents) if not place.exists()]
        raise FileNotFoundError(
            f"cannot read the image {path}: {gone[-1] if gone else path} was there when the run started and is gone. "
            "Bring it back (is the disk still mounted?) and resume the run."
        ) from error
    except OSError as error:
        raise ValueError(f"cannot read the image {path} ({error}): look after the disk, then resume the run") from error


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
        broken_images: what happens at an image that cannot be decoded: ``stop`` with an error, or ``skip`` it, which
            leaves it out of its batch, warns, counts it, and stops after 1 % of the images (10 at least).
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
        broken_images: str = "stop",
        **kwargs: Any,
    ) -> None:
        super().__init__(val_split=val_split, eval_batch_size=eval_batch_size, **kwargs)
        if not 0 < image_size <= resize:
            raise ValueError(f"data.image_size={image_size} must be positive and at most data.resize={resize}")
        self.root = Path(root or os.environ.get("BSQ_DATA", "data")).expanduser()
        self.image_size, self.resize, self.augment = image_size, resize, augment
        self.broken_images = broken_images
        self._broken = [BrokenImages([], broken_images)]  # refuses a wrong policy before any folder is listed

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
        self._broken = [BrokenImages([path for path, _ in part], self.broken_images) for part in (train, test)]
        return ImageSets(
            FolderImages(train, self._broken[0], random if self.augment else middle, self.seed),
            FolderImages(train, self._broken[0], middle, self.seed),
            FolderImages(test, self._broken[1], middle, self.seed),
        )

    @property
    def skipped_images(self) -> list[str]:
        """Files that were left out so far because they cannot be decoded, each once."""
        return [path for broken in self._broken for path in broken.skipped]

    def merge_skipped_(self, union: Callable[[Tensor], Tensor]) -> None:
        """Makes ``skipped_images`` that of all ranks; ``union`` gives the maximum over ranks of uint8 ``[N]``.

        Raises:
            ValueError: together the ranks have more broken images than can be skipped.
        """
        for broken in self._broken:
            broken.merge_(union)

    def describe(self) -> dict[str, str | int | bool]:
        """What a table of the run says about the data, with the number of images skipped so far."""
        return {
            **super().describe(),
            "broken_images": self.broken_images,
            "skipped_images": len(self.skipped_images),
        }

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
