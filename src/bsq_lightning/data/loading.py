"""The loader of whole batches, which knows where in an epoch it is."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.seed import pl_worker_init_function
from torch import Tensor
from torch.utils.data import DataLoader

from bsq_lightning.data.sampling import BatchDataset, EpochSampler


class EpochLoader(DataLoader[tuple[Tensor, Tensor]]):
    """A DataLoader for whole batches, normalized, which can continue in the middle of an epoch.

    Lightning stores ``state_dict`` in its checkpoints and gives it back on resume, before the first batch.

    Args:
        dataset: gives uint8 pixels; the loader gives float32 images.
        sampler: which images come in which batch.
        device: where the images go and are normalized; pixels in pinned memory go there while the device computes.
        **kwargs: those of ``DataLoader``.
    """

    def __init__(
        self, dataset: BatchDataset, sampler: EpochSampler, device: torch.device | str = "cpu", **kwargs: Any
    ) -> None:
        kwargs = {"worker_init_fn": _begin_worker, **kwargs, "batch_size": None}
        super().__init__(dataset, sampler=sampler, **kwargs)
        self.device = torch.device(device)
        self.normalize = dataset.normalize
        self.epochs = sampler
        self._position = (0, 0)
        self._resume: tuple[int, int, int] | None = None

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        # A generator, so that workers fetch ahead only once a batch is asked for: Lightning makes the iterator
        # before it sets the epoch.
        epoch, done, images = self._resume or (-1, 0, 0)
        self._resume = None
        if epoch == self.epochs.epoch and 0 < done < len(self.epochs):
            if images != self.epochs.images_per_step:
                raise ValueError(
                    f"the run was stopped in the middle of an epoch that it took in steps of {images} images, now a "
                    f"step has {self.epochs.images_per_step}: images would be left out or seen twice. Go on with as "
                    "many devices as before; after that epoch their number may change"
                )
            self.epochs.first_batch = done
        self._position = (self.epochs.epoch, self.epochs.first_batch)
        normalize = self.normalize.to(self.device)
        batches = super().__iter__()
        while True:
            try:
                pixels, labels = next(batches)
            except StopIteration:
                return
            except (ValueError, OSError) as error:
                raise _without_traceback(error) from error
            self._position = (self._position[0], self._position[1] + 1)
            yield normalize(pixels.to(self.device, non_blocking=True)), labels

    def state_dict(self) -> dict[str, int]:
        """The epoch, how many of its batches were given out, and the images of a batch over all ranks."""
        return {"epoch": self._position[0], "batches": self._position[1], "images": self.epochs.images_per_step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Lets the next iteration go on from there, if it is of the same epoch.

        That iteration raises ValueError where it starts within an epoch whose steps had another number of images.
        """
        images = state.get("images", self.epochs.images_per_step)
        self._resume = (int(state["epoch"]), int(state["batches"]), int(images))


def _begin_worker(worker: int) -> None:
    """Ctrl-C reaches every process of the terminal; this one still has to give the batches of the last step. Seeds are
    those that Lightning sets where a loader has no such function: a rank's own, for data sets that draw from them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.environ.get("PL_SEED_WORKERS") == "1":
        pl_worker_init_function(worker)


def _without_traceback(error: Exception) -> Exception:
    """An error of a loading process comes with that process's whole traceback as its message: its last line says it."""
    text = str(error)
    if not text.startswith("Caught ") or type(error) not in (ValueError, FileNotFoundError):
        return error
    return type(error)(text.rstrip().rsplit("\n", 1)[-1].partition(": ")[2])
