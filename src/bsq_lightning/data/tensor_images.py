"""Images that fit in memory, augmented a whole batch at a time."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from bsq_lightning.data.normalize import Normalize
from bsq_lightning.data.sampling import BatchDataset, BatchKey, keyed_generator


class TensorImages(BatchDataset):
    """uint8 images in memory; a batch is cropped and flipped in a few tensor operations.

    An image's crop and flip depend on ``(seed, epoch, index)`` only: they are drawn for all images at the start of an
    epoch and looked up by index.

    Args:
        images: uint8 ``[N, 3, H, W]``; shared, not copied.
        labels: int64 ``[N]``.
        mean: per channel, on a scale of 0..1.
        std: per channel, on a scale of 0..1.
        augment: crop at random from the image in a black frame of ``padding`` pixels, and flip.
        padding: width of that frame.
        flip: whether to mirror every second image, by chance.
        seed: of crops and flips.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        augment: bool = False,
        padding: int = 4,
        flip: bool = True,
        seed: int = 0,
    ) -> None:
        self.images, self.labels = images, labels
        self.normalize = Normalize(mean, std)
        self.augment, self.padding, self.flip, self.seed = augment, padding, flip, seed
        self._drawn_epoch: int | None = None
        self._shifts = self._flips = torch.empty(0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        epoch, indices = key
        pixels = self.images.index_select(0, indices)
        if self.augment:
            pixels = self._crop(pixels, *self.crops(epoch, indices))
        return pixels, self.labels[indices]

    def crops(self, epoch: int, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Top-left corners ``[B, 2]`` in the padded image (row, column), and flips ``[B]``, of an epoch's images."""
        if epoch != self._drawn_epoch:
            generator = keyed_generator("augmentation", self.seed, epoch)
            self._shifts = torch.randint(2 * self.padding + 1, (len(self), 2), generator=generator)
            self._flips = (torch.rand(len(self), generator=generator) < 0.5) & self.flip
            self._drawn_epoch = epoch
        return self._shifts[indices], self._flips[indices]

    def _crop(self, pixels: Tensor, corners: Tensor, flips: Tensor) -> Tensor:
        # One gather for crop and flip together: a flipped image reads its columns backwards.
        height, width = pixels.shape[-2:]
        padded = F.pad(pixels, (self.padding,) * 4)
        across = torch.arange(width)
        rows = corners[:, :1] + torch.arange(height)
        columns = corners[:, 1:] + torch.where(flips[:, None], across.flip(0), across)
        source = rows[:, :, None] * padded.shape[-1] + columns[:, None, :]
        source = source.flatten(1)[:, None].expand(-1, pixels.shape[1], -1)
        return padded.flatten(2).gather(2, source).view_as(pixels)
