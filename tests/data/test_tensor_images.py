"""Augmentation of whole batches against a slow oracle that takes one image at a time."""

import pytest
import torch
from torch import Tensor

from bsq_lightning.data import EpochLoader, EpochSampler, TensorImages

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


def images(count: int = 40, height: int = 12, width: int = 12) -> TensorImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, height, width), generator=generator, dtype=torch.uint8)
    return TensorImages(pixels, torch.arange(count), MEAN, STD, augment=True, padding=4, seed=5)


def oracle(data: TensorImages, epoch: int, index: int) -> Tensor:
    (corner,), (flip,) = data.crops(epoch, torch.tensor([index]))
    top, left = corner.tolist()
    channels, height, width = data.images[index].shape
    framed = torch.zeros(channels, height + 8, width + 8, dtype=torch.uint8)
    framed[:, 4:-4, 4:-4] = data.images[index]
    crop = framed[:, top : top + height, left : left + width]
    return torch.flip(crop, [2]) if flip else crop


@pytest.mark.parametrize("width", [12, 9])
def test_batch_equals_the_oracle(width: int) -> None:
    data = images(width=width)
    for epoch in (0, 3):
        indices = torch.randperm(len(data))[:25]
        batch, labels = data[epoch, indices]
        assert batch.dtype == torch.uint8
        assert batch.is_contiguous()
        assert torch.equal(labels, indices)
        for image, index in zip(batch, indices.tolist(), strict=True):
            assert torch.equal(image, oracle(data, epoch, index))


def test_normalization_equals_the_textbook() -> None:
    data = images()
    pixels, _ = data[0, torch.arange(40)]
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    torch.testing.assert_close(data.normalize(pixels), (pixels / 255 - mean) / std, rtol=1e-5, atol=1e-5)
    (normalized, _), *_ = EpochLoader(data, EpochSampler(40, 40, seed=0, shuffle=False))
    assert normalized.dtype == torch.float32 and torch.equal(normalized, data.normalize(pixels))


def test_an_image_does_not_depend_on_its_batch_or_on_what_was_drawn_before() -> None:
    data = images()
    batch, _ = data[2, torch.tensor([5, 11, 30])]
    torch.manual_seed(123)
    other = images()
    _ = other[7, torch.tensor([1])]
    assert torch.equal(other[2, torch.tensor([11])][0][0], batch[1])
    assert torch.equal(other[2, torch.tensor([30, 11])][0][0], batch[2])


def test_epochs_and_seeds_differ() -> None:
    data, indices = images(), torch.arange(40)
    assert not torch.equal(data[0, indices][0], data[1, indices][0])
    first = data.crops(0, indices)[0]
    data.seed, data._drawn_epoch = 6, None
    assert not torch.equal(data.crops(0, indices)[0], first)


def test_crops_cover_their_range_evenly() -> None:
    data = images(count=8100, height=2, width=2)
    corners, flips = data.crops(0, torch.arange(8100))
    counts = torch.bincount(corners[:, 0] * 9 + corners[:, 1], minlength=81)
    assert counts.min() > 50  # 100 expected of each of the 81 places, give or take 10
    assert counts.max() < 150
    assert 3800 < flips.sum() < 4300
    assert len({tuple(corner) for corner in corners[:32].tolist()}) > 20


def test_no_flip_and_no_augmentation() -> None:
    data, indices = images(), torch.arange(40)
    data.flip = False
    assert not data.crops(0, indices)[1].any()
    data.augment = False
    batch, _ = data[0, indices]
    assert torch.equal(batch, data[9, indices][0])
    assert torch.equal(batch, data.images)
