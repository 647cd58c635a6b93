"""What every data module has in common: the split, the order of images, and the loaders."""

import hashlib
from abc import ABC, abstractmethod
from functools import cached_property
from typing import NamedTuple

import lightning as L
import torch
from torch import Tensor

from bsq_lightning.data.loading import EpochLoader
from bsq_lightning.data.sampling import BatchDataset, EpochSampler, keyed_generator


class ImageSets(NamedTuple):
    """The training images with and without augmentation, under the same indices, and the test images."""

    augmented: BatchDataset
    plain: BatchDataset
    test: BatchDataset


class ImageDataModule(L.LightningDataModule, ABC):
    """Loaders over images whose batches are a pure function of (seed, epoch, index).

    A subclass gives ``load_images``, ``num_classes`` and ``image_size``. Batches are float32 ``[B, 3, H, W]``,
    normalized, and int64 labels ``[B]``. Give the Trainer ``use_distributed_sampler=False``: the loaders share the
    images among the ranks themselves.

    Args:
        batch_size: training images per step and rank.
        eval_batch_size: validation or test images per step and rank.
        val_split: training images kept for validation, as a number or a fraction; 0 validates on the test set.
        seed: of split, order and augmentation.
        num_workers: processes that load; None chooses what suits the machine and the kind of data.
        limit_train: use only so many training images, for a quick trial.

    Raises:
        ValueError: a number that makes no sense.
    """

    num_classes: int
    image_size: int

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        val_split: int | float = 5000,
        seed: int = 1,
        num_workers: int | None = None,
        limit_train: int | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1 or eval_batch_size < 1:
            raise ValueError(f"data.batch_size and data.eval_batch_size are positive: {batch_size}, {eval_batch_size}")
        if val_split < 0 or (isinstance(val_split, float) and val_split >= 1):
            raise ValueError(f"data.val_split is a number of images or a fraction below 1, not {val_split}")
        if limit_train is not None and limit_train < 1:
            raise ValueError(f"data.limit_train is a positive number of images or null, not {limit_train}")
        self.batch_size, self.eval_batch_size, self.val_split = batch_size, eval_batch_size, val_split
        self.seed, self.num_workers, self.limit_train = seed, num_workers, limit_train

    @abstractmethod
    def load_images(self) -> ImageSets:
        """Reads the images, or what is needed to read them later; called once."""

    @cached_property
    def images(self) -> ImageSets:
        """The three sets of images, read at the first use."""
        return self.load_images()

    @cached_property
    def split(self) -> tuple[Tensor, Tensor]:
        """Indices of the training and the validation images, fixed by the seed, both in random order."""
        total = len(self.images.plain)
        held_out = int(self.val_split if isinstance(self.val_split, int) else self.val_split * total)
        if held_out >= total or (held_out < 1 and not self.val_is_test):
            purpose = "validate on: raise it, or set 0 to use the test set" if held_out < 1 else "train on: lower it"
            raise ValueError(f"data.val_split={self.val_split} leaves none of the {total} training images to {purpose}")
        order = torch.randperm(total, generator=keyed_generator("split", self.seed))
        return order[held_out:][: self.limit_train], order[:held_out]

    def setup(self, stage: str | None = None) -> None:
        """Reads and splits the images; the second call does nothing."""
        self.split  # noqa: B018

    @property
    def val_is_test(self) -> bool:
        """Whether validation uses the test set, as many papers do."""
        return self.val_split == 0

    @property
    def train_size(self) -> int:
        """Images to train on."""
        return len(self.split[0])

    @property
    def val_size(self) -> int:
        """Images to validate on."""
        return self.test_size if self.val_is_test else len(self.split[1])

    @property
    def test_size(self) -> int:
        """Images to test on."""
        return len(self.images.test)

    def train_dataloader(self) -> EpochLoader:
        """Augmented training images, in a new order every epoch."""
        # A last batch too small to give every rank an image would let the ranks run out of step.
        rest = self.train_size % (self.batch_size * self._world[1])
        return self._loader(
            self.images.augmented, self.split[0], self.batch_size, shuffle=True, drop_last=0 < rest < self._world[1]
        )

    def val_dataloader(self) -> EpochLoader:
        """Validation images, or the test set where ``val_split`` is 0."""
        if self.val_is_test:
            return self.test_dataloader()
        return self._loader(self.images.plain, self.split[1], self.eval_batch_size)

    def test_dataloader(self) -> EpochLoader:
        """The test set."""
        return self._loader(self.images.test, torch.arange(self.test_size), self.eval_batch_size)

    def calibration_dataloader(self) -> EpochLoader:
        """Training images without augmentation, in one fixed random order, the same on all ranks."""
        sampler = EpochSampler(self.split[0], self.batch_size, seed=self.seed, shuffle=False)
        return self._with_workers(self.images.plain, sampler, persistent=False)

    def epoch_dataloader(self, epoch: int) -> EpochLoader:
        """Augmented training images in the order of an epoch, the same on all ranks."""
        sampler = EpochSampler(self.split[0], self.batch_size, seed=self.seed, shuffle=True)
        sampler.set_epoch(epoch)
        return self._with_workers(self.images.augmented, sampler, persistent=False)

    def trial_batch(self, count: int) -> tuple[Tensor, Tensor]:
        """``count`` training images of epoch 0 as the network gets them and their labels, read in this process.

        Fewer, where there are fewer or some of them are broken and skipped.
        """
        pixels, labels = self.images.augmented[0, self.split[0][:count]]
        return self.images.augmented.normalize(pixels), labels

    def fingerprint(self) -> int:
        """A number of 63 bits that tells these images, labels and their split from others; equal on all ranks.

        Of the training and the test images it looks at sixteen of each, and of the split at every index.
        """
        digest = hashlib.blake2b(digest_size=8)
        train, val = self.split
        digest.update(train.numpy().tobytes() + b"|" + val.numpy().tobytes())
        for images in (self.images.plain, self.images.test):
            chosen = torch.linspace(0, len(images) - 1, 16).long()
            pixels, labels = images[0, chosen]
            digest.update(pixels.numpy().tobytes() + labels.numpy().tobytes())
        return int.from_bytes(digest.digest()) >> 1

    def describe(self) -> dict[str, str | int | bool]:
        """What a table of the run says about the data."""
        return {
            "data": type(self).__name__.removesuffix("DataModule"),
            "classes": self.num_classes,
            "image_size": self.image_size,
            "train": self.train_size,
            "val": self.val_size,
            "test": self.test_size,
            "val_is_test": self.val_is_test,
            "batch_size": self.batch_size,
            "eval_batch_size": self.eval_batch_size,
            "seed": self.seed,
        }

    def default_workers(self) -> int:
        """Loading processes when none are asked for; for images in memory the main process is the fastest."""
        return 0

    @property
    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _loader(
        self, images: BatchDataset, indices: Tensor, batch_size: int, shuffle: bool = False, drop_last: bool = False
    ) -> EpochLoader:
        rank, world_size = self._world
        if len(indices) < world_size:
            raise ValueError(
                f"{len(indices)} images cannot be shared by {world_size} devices: use fewer, or more images"
            )
        sampler = EpochSampler(
            indices,
            batch_size,
            seed=self.seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=rank,
            world_size=world_size,
        )
        return self._with_workers(images, sampler)

    def _with_workers(self, images: BatchDataset, sampler: EpochSampler, persistent: bool = True) -> EpochLoader:
        workers = self.default_workers() if self.num_workers is None else self.num_workers
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        return EpochLoader(
            images,
            sampler,
            device,
            num_workers=workers,
            persistent_workers=persistent and workers > 0,
            pin_memory=device.type == "cuda",
        )
