"""The loader of whole batches, which knows where in an epoch it is."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from bsq_lightning.data.sampling import BatchDataset, EpochSampler


class EpochLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader for whole batches, which can continue in the middle of an epoch.

    Lightning stores ``state_dict`` in its checkpoints and gives it back on resume, before the first batch.
    """

    def __init__(self, dataset: BatchDataset, sampler: EpochSampler, **kwargs: Any) -> None:
        super().__init__(dataset, sampler=sampler, **{**kwargs, "batch_size": None})
        self.epochs = sampler
        self._position = (0, 0)
        self._resume: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A generator, so that workers fetch ahead only once a batch is asked for: Lightning makes the iterator
        # before it sets the epoch.
        epoch, done = self._resume or (-1, 0)
        self._resume = None
        if epoch == self.epochs.epoch:
            self.epochs.first_batch = done
        self._position = (self.epochs.epoch, self.epochs.first_batch)
        for batch in super().__iter__():
            self._position = (self._position[0], self._position[1] + 1)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch and how many of its batches were given out."""
        return {"epoch": self._position[0], "batches": self._position[1]}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next iteration go on from there, if it is of the same epoch."""
        self._resume = (int(state["epoch"]), int(state["batches"]))
