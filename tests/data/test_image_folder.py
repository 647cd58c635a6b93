"""Images in folders: one key, one picture; grey images, broken files and odd folders."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from bsq_lightning.data import ImageFolderDataModule, ImageNetDataModule


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of five training images and one test image each; one image is grey, one has an alpha channel."""
    random = np.random.default_rng(0)
    for part, count in (("train", 5), ("val", 1)):
        for name in ("cat", "dog"):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(256, size=(40, 30 + 10 * number, 3), dtype=np.uint8)
                mode = {0: "L", 1: "RGBA"}.get(number, "RGB")
                Image.fromarray(pixels).convert(mode).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def module(root: Path, **kwargs: Any) -> ImageFolderDataModule:
    chosen = {"image_size": 16, "resize": 20, "batch_size": 3, "val_split": 2, "num_workers": 0, **kwargs}
    return ImageFolderDataModule(str(root), **chosen)


def test_sizes_and_shapes(root: Path) -> None:
    data = module(root)
    assert data.num_classes == 2
    data.setup()
    assert (data.train_size, data.val_size, data.test_size) == (8, 2, 2)
    for loader in (data.train_dataloader(), data.val_dataloader(), data.test_dataloader()):
        images, labels = next(iter(loader))
        assert images.shape == (len(labels), 3, 16, 16)
        assert images.dtype == torch.float32
        assert labels.dtype == torch.int64
    grey, _ = data.images.plain[0, torch.tensor([0])]
    assert grey.dtype == torch.uint8
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])


def test_an_image_is_a_function_of_seed_epoch_and_index(root: Path) -> None:
    images = module(root).images.augmented
    batch, _ = images[3, torch.tensor([2, 7, 9])]
    torch.manual_seed(77)
    before = torch.get_rng_state()
    assert torch.equal(images[3, torch.tensor([9, 2])][0], batch[[2, 0]])
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(images[4, torch.tensor([2, 7, 9])][0], batch)
    assert not torch.equal(module(root, seed=2).images.augmented[3, torch.tensor([2, 7, 9])][0], batch)


def test_workers_change_nothing(root: Path) -> None:
    alone, helped = (list(module(root, num_workers=workers).train_dataloader()) for workers in (0, 2))
    for (images, labels), (same_images, same_labels) in zip(alone, helped, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


def test_evaluation_images_are_not_augmented(root: Path) -> None:
    plain = module(root).images.plain
    indices = torch.arange(10)
    assert torch.equal(plain[0, indices][0], plain[5, indices][0])


def test_broken_image_is_named(root: Path) -> None:
    path = root / "train" / "dog" / "3.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="cannot decode the image .*3.png"):
        _ = module(root).images.augmented[0, torch.arange(10)]


def test_missing_and_empty_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="train.*data.root.*data=digits"):
        _ = module(tmp_path / "absent").num_classes
    (tmp_path / "train").mkdir()
    for use in (lambda: module(tmp_path).num_classes, lambda: module(tmp_path).setup()):
        with pytest.raises(FileNotFoundError, match="train.*data.root.*data=digits"):
            use()
    (tmp_path / "train" / "cat").mkdir()
    with pytest.raises(FileNotFoundError, match="train.*cat.*data.root"):
        module(tmp_path).setup()


def test_classes_must_agree(root: Path) -> None:
    (root / "val" / "dog").rename(root / "val" / "wolf")
    with pytest.raises(ValueError, match=r"same class folders.*\['dog', 'wolf'\]"):
        module(root).setup()


def test_crop_must_fit() -> None:
    with pytest.raises(ValueError, match="data.image_size=299.*data.resize=256"):
        ImageNetDataModule("anywhere", image_size=299)


def test_real_imagenet_sample(bsq_data: Path, tmp_path: Path) -> None:
    sample = bsq_data / "imagenet-sample" / "train"
    if not sample.is_dir():
        pytest.skip("needs imagenet-sample in the folder that BSQ_DATA names")
    for part in ("train", "val"):  # the sample has one set of images, which serves as both
        (tmp_path / part).symlink_to(sample, target_is_directory=True)
    data = ImageNetDataModule(str(tmp_path), val_split=20, batch_size=8, eval_batch_size=20, num_workers=0)
    assert data.num_classes == 100
    assert (data.train_size, data.val_size, data.test_size) == (80, 20, 100)
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (8, 3, 224, 224)
    images, labels = next(iter(data.val_dataloader()))
    assert images.shape == (20, 3, 224, 224)
    assert images.isfinite().all()
    assert len(set(labels.tolist())) == 20
