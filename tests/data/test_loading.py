"""The loader: loading processes that live on over epochs, pixels that travel as they are stored, pinned memory."""

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from bsq_lightning.data import DigitsDataModule, EpochLoader, EpochSampler, TensorImages
from bsq_lightning.data.sampling import BatchKey


class WhoLoads(TensorImages):
    """The label is the number of the process that made the batch, the pixels are the epoch."""

    def __init__(self) -> None:
        super().__init__(torch.zeros(64, 3, 2, 2, dtype=torch.uint8), torch.zeros(64), [0.0] * 3, [1 / 255] * 3)

    def __getitem__(self, key: BatchKey) -> tuple[Tensor, Tensor]:
        epoch, indices = key
        return torch.full((len(indices), 3, 2, 2), epoch, dtype=torch.uint8), torch.tensor([os.getpid()])


def test_loading_processes_live_on_and_follow_the_epoch() -> None:
    sampler = EpochSampler(64, 4, seed=0, shuffle=True)
    loader = EpochLoader(WhoLoads(), sampler, num_workers=2, persistent_workers=True)
    seen: list[set[int]] = []
    for epoch in (0, 1, 5):
        sampler.set_epoch(epoch)
        batches = list(loader)
        assert len(batches) == 16
        assert {float(images.mean()) for images, _ in batches} == {epoch}
        seen.append({int(label) for _, label in batches})
    assert len(seen[0]) == 2 and os.getpid() not in seen[0]
    assert seen[0] == seen[1] == seen[2]
    next(iter(loader))  # an iteration that is left in the middle leaves nothing behind
    sampler.set_epoch(7)
    batches = list(loader)
    assert len(batches) == 16 and {float(images.mean()) for images, _ in batches} == {7}


def test_pixels_leave_the_data_set_in_bytes_and_the_loader_in_floats() -> None:
    data = DigitsDataModule(batch_size=32)
    stored, _ = data.images.augmented[0, torch.arange(32)]
    images, labels = next(iter(data.train_dataloader()))
    assert (stored.dtype, images.dtype, labels.dtype) == (torch.uint8, torch.float32, torch.int64)


@pytest.mark.parametrize(("device", "pinned"), [("cpu", False), ("cuda", True)])
def test_pinned_memory_and_the_device_follow_the_trainer(device: str, pinned: bool) -> None:
    data = DigitsDataModule(num_workers=3)
    strategy = SimpleNamespace(root_device=torch.device(device))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)  # pyright: ignore
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        assert (loader.pin_memory, loader.device.type) == (pinned, device)
        assert (loader.num_workers, loader.persistent_workers) == (3, True)
    assert data.calibration_dataloader().pin_memory is pinned


@pytest.mark.gpu
def test_images_arrive_on_the_gpu_as_they_would_on_the_cpu() -> None:
    data = DigitsDataModule(num_workers=2)
    here = next(iter(data.train_dataloader()))[0]
    strategy = SimpleNamespace(root_device=torch.device("cuda", 0))
    data.trainer = SimpleNamespace(strategy=strategy, global_rank=0, world_size=1)  # pyright: ignore
    there = next(iter(data.train_dataloader()))[0]
    assert there.device.type == "cuda"
    assert torch.equal(there.cpu(), here)
