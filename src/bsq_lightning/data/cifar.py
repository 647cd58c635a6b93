"""CIFAR-10 and CIFAR-100 in memory, from the standard python archive."""

import os
import socket
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from bsq_lightning.data.base import ImageDataModule, ImageSets
from bsq_lightning.data.numpy_pickle import read_numpy_pickle
from bsq_lightning.data.tensor_images import TensorImages

DOWNLOAD_TIMEOUT = 20  # seconds without an answer, so that a machine without network does not wait for minutes


class CIFAR10DataModule(ImageDataModule):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 pixels; padded by 4, cropped and flipped in training.

    Args:
        root: folder that has ``cifar-10-batches-py`` in it, or that folder; None is ``$BSQ_DATA`` or ``./data``.
        download: fetch the archive into ``root`` if it is not there.
        augment: crop and flip the training images.
        **kwargs: those of ``ImageDataModule``.

    Raises:
        FileNotFoundError: no images, and none could be downloaded (at ``prepare_data`` or the first use).
        ValueError: a file is damaged or is no CIFAR file (at the first use).
    """

    num_classes = 10
    image_size = 32
    archive: ClassVar[str] = "CIFAR10"  # the class of torchvision that knows where to download it
    folder: ClassVar[str] = "cifar-10-batches-py"
    train_files: ClassVar[tuple[str, ...]] = tuple(f"data_batch_{i}" for i in range(1, 6))
    test_files: ClassVar[tuple[str, ...]] = ("test_batch",)
    label_key: ClassVar[str] = "labels"
    mean: ClassVar[tuple[float, ...]] = (0.4914, 0.4822, 0.4465)
    std: ClassVar[tuple[float, ...]] = (0.2023, 0.1994, 0.2010)

    def __init__(self, root: str | None = None, download: bool = True, augment: bool = True, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.root = Path(root or os.environ.get("BSQ_DATA", "data")).expanduser()
        self.download, self.augment = download, augment

    def prepare_data(self) -> None:
        """Downloads the archive if it is missing and ``download`` is set."""
        if self._find() is not None or not self.download:
            return
        from torchvision import datasets
        from torchvision.datasets.utils import download_and_extract_archive

        source = getattr(datasets, self.archive)
        before = socket.getdefaulttimeout()
        socket.setdefaulttimeout(DOWNLOAD_TIMEOUT)
        try:
            download_and_extract_archive(source.url, str(self.root), filename=source.filename, md5=source.tgz_md5)
        except (OSError, RuntimeError, EOFError) as error:
            raise FileNotFoundError(self._absent(f"the download failed ({error})")) from error
        finally:
            socket.setdefaulttimeout(before)

    def load_images(self) -> ImageSets:
        folder = self._find()
        if folder is None:
            raise FileNotFoundError(
                self._absent("call prepare_data to download it" if self.download else "data.download is false")
            )
        images, labels = self._read(folder, self.train_files)
        return ImageSets(
            TensorImages(images, labels, self.mean, self.std, augment=self.augment, seed=self.seed),
            TensorImages(images, labels, self.mean, self.std),
            TensorImages(*self._read(folder, self.test_files), self.mean, self.std),
        )

    def _find(self) -> Path | None:
        needed = self.train_files + self.test_files
        folders = (self.root / self.folder, self.root)
        return next((folder for folder in folders if all((folder / name).is_file() for name in needed)), None)

    def _absent(self, reason: str) -> str:
        files = ", ".join(self.train_files + self.test_files)
        return (
            f"no {self.folder} with {files} in {self.root}; {reason}. Set data.root or the environment variable "
            "BSQ_DATA to the folder that holds it, or try data=digits, which needs no files."
        )

    def _read(self, folder: Path, names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        """Images uint8 ``[N, 3, 32, 32]`` and labels ``[N]`` of some files, one after the other."""
        parts = [self._read_file(folder / name) for name in names]
        images = np.concatenate([pixels for pixels, _ in parts]).reshape(-1, 3, 32, 32)
        return torch.from_numpy(images), torch.from_numpy(np.concatenate([labels for _, labels in parts]))

    def _read_file(self, path: Path) -> tuple[np.ndarray, np.ndarray]:
        remedy = f"Unpack the python version of the archive again, or point data.root to a whole {self.folder}."
        try:
            content = read_numpy_pickle(path)
        except ValueError as error:
            raise ValueError(f"{error}. {remedy}") from error
        # Python 2 and some tools write the keys as bytes.
        pixels = content.get("data", content.get(b"data"))
        labels = np.asarray(content.get(self.label_key, content.get(self.label_key.encode(), ())))
        if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (3072,):
            raise ValueError(f"{path} has no images: 'data' must be uint8 [n, 3072]. {remedy}")
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
            raise ValueError(f"{path} has no label for every image under {self.label_key!r}. {remedy}")
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= self.num_classes:
            raise ValueError(f"{path} has labels outside 0..{self.num_classes - 1}, or none. {remedy}")
        return pixels, labels.astype(np.int64)


class CIFAR100DataModule(CIFAR10DataModule):
    """CIFAR-100, with its 100 fine classes; see ``CIFAR10DataModule``."""

    num_classes = 100
    archive = "CIFAR100"
    folder = "cifar-100-python"
    train_files = ("train",)
    test_files = ("test",)
    label_key = "fine_labels"
    mean = (0.5071, 0.4865, 0.4409)
    std = (0.2673, 0.2564, 0.2762)
