"""Which images come in which batch: a pure function of (seed, epoch), whatever the world size and after a resume."""

import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from bsq_lightning.data.normalize import Normalize

# What a sampler asks a data set for: the epoch, and the indices of the images of one batch.
BatchKey = tuple[int, Tensor]


def keyed_seed(*key: int | str) -> int:
    """A seed of 63 bits from a key; keys that differ at all give unrelated seeds.

    Example:
        >>> keyed_seed("order", 1, 2) == keyed_seed("order", 1, 2), keyed_seed(1, 23) == keyed_seed(12, 3)
        (True, False)
    """
    text = repr([part if isinstance(part, str) else int(part) for part in key])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()) >> 1


def keyed_generator(*key: int | str) -> torch.Generator:
    """A CPU random generator that depends on the key only, not on what was drawn elsewhere."""
    return torch.Generator().manual_seed(keyed_seed(*key))


class BatchDataset(Dataset[tuple[Tensor, Tensor]]):
    """A data set that is asked for whole batches, by ``(epoch, indices)``.

    It gives pixels as they are stored, a quarter of the bytes of what the network takes: they go through the queue of
    the loading processes and onto the device like that, and the loader applies ``normalize`` there.
    """

    normalize: Normalize

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        """Pixels ``[B, 3, H, W]`` in uint8 and labels ``[B]`` in int64; B may be less than the indices' number."""
        raise NotImplementedError


class EpochSampler(Sampler[BatchKey]):
    """Yields ``(epoch, indices)`` for every batch of an epoch.

    The epoch's order is cut into global batches of ``batch_size * world_size``; each rank takes every
    ``world_size``-th image of each. So two ranks of 64 see together what one process of 128 sees.

    Args:
        samples: number of images, or the indices of a subset as a LongTensor.
        batch_size: images per batch and rank.
        seed: together with the epoch, fixes the order.
        shuffle: a new order in each epoch; without it, the order of ``samples``.
        drop_last: leave out the last global batch if it is not full.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: no images, no batch size, or a rank outside the world.

    Example:
        >>> sampler = EpochSampler(5, batch_size=2, seed=1, shuffle=False)
        >>> [(epoch, indices.tolist()) for epoch, indices in sampler]
        [(0, [0, 1]), (0, [2, 3]), (0, [4])]
    """

    def __init__(
        self,
        samples: int | Tensor,
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.indices = samples if isinstance(samples, Tensor) else torch.arange(samples)
        if len(self.indices) < 1 or batch_size < 1:
            raise ValueError(f"a batch needs images: got {len(self.indices)} images, batch size {batch_size}")
        if not 0 <= rank < world_size:
            raise ValueError(f"rank {rank} is not in a world of {world_size}")
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.rank, self.world_size = rank, world_size
        self.epoch = 0
        self._first_batch = 0

    @property
    def images_per_step(self) -> int:
        """Images of a full batch over all ranks."""
        return self.batch_size * self.world_size

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch of the next iteration; Lightning calls this."""
        self.epoch = int(epoch)

    @property
    def first_batch(self) -> int:
        """Where the next iteration starts, and that one only: later epochs start at 0 again."""
        return self._first_batch

    @first_batch.setter
    def first_batch(self, batch: int) -> None:
        if not 0 <= batch <= len(self):
            raise ValueError(f"cannot start at batch {batch} of an epoch of {len(self)}")
        self._first_batch = int(batch)

    def __len__(self) -> int:
        """Batches of a whole epoch, wherever the next iteration starts."""
        full, rest = divmod(len(self.indices), self.images_per_step)
        return full + (rest > self.rank and not self.drop_last)

    def __iter__(self) -> Iterator[BatchKey]:
        # A generator: epoch and start are read when the first batch is asked for, not when the iterator is made.
        epoch, first, self._first_batch = self.epoch, self._first_batch, 0
        order = self.indices
        if self.shuffle:
            order = order[torch.randperm(len(order), generator=keyed_generator("order", self.seed, epoch))]
        step = self.images_per_step
        for batch in range(first, len(self)):
            yield epoch, order[batch * step + self.rank : (batch + 1) * step : self.world_size]
