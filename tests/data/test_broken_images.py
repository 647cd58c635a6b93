"""Images that cannot be decoded, folders that go away: what is an error, what is left out, what is counted."""

import logging
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from bsq_lightning.callbacks import SkippedImages
from bsq_lightning.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from bsq_lightning.data import ImageFolderDataModule
from bsq_lightning.models import ResNetCifar
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import BitPlaneQuantizer

CLASSES = ("cat", "dog")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two classes of twenty training images and two test images each."""
    random = np.random.default_rng(0)
    for part, count in (("train", 20), ("val", 2)):
        for name in CLASSES:
            (tmp_path / "data" / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(256, size=(24, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / name / f"{number:02d}.png")
    return tmp_path / "data"


def data(root: Path, **kwargs: Any) -> ImageFolderDataModule:
    chosen = {"image_size": 16, "resize": 20, "batch_size": 8, "eval_batch_size": 4, "val_split": 4, "num_workers": 0}
    return ImageFolderDataModule(str(root), **{**chosen, **kwargs})


def damage(path: Path, how: str) -> Path:
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "text": b"not found"}[how])
    return path


def trained(data: ImageFolderDataModule) -> set[str]:
    """Files that the training loader asks for."""
    samples = data.images.augmented.samples  # pyright: ignore[reportAttributeAccessIssue]
    return {samples[index][0] for index in data.split[0].tolist()}


# One row with loading processes: after an error torch waits ten seconds for two of them to end.
@pytest.mark.parametrize(("how", "workers"), [("truncated", 0), ("empty", 0), ("text", 0), ("truncated", 2)])
def test_stop_names_the_file_in_one_line(root: Path, how: str, workers: int) -> None:
    broken = damage(root / "train" / "dog" / "03.png", how)
    with pytest.raises(ValueError, match="cannot decode the image .*dog/03.png .*data.broken_images=skip") as raised:
        list(data(root, num_workers=workers, val_split=0).train_dataloader())
    assert str(broken) in str(raised.value)
    assert "\n" not in str(raised.value) and "Traceback" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 2])
def test_skip_leaves_out_exactly_the_broken_ones_and_counts_each_once(root: Path, workers: int) -> None:
    whole = list(data(root, val_split=0).train_dataloader())
    names = [("cat", "05.png"), ("dog", "00.png"), ("dog", "13.png")]
    kinds = ("truncated", "empty", "text")
    broken = [str(damage(root / "train" / c / n, how)) for (c, n), how in zip(names, kinds, strict=True)]
    damaged_test = str(damage(root / "val" / "cat" / "01.png", "truncated"))
    skipping = data(root, val_split=0, num_workers=workers, broken_images="skip")
    loader = skipping.train_dataloader()
    samples = [path for path, _ in skipping.images.augmented.samples]  # pyright: ignore[reportAttributeAccessIssue]
    for epoch in (1, 0):
        loader.epochs.set_epoch(epoch)
        batches = list(loader)
        assert sum(len(labels) for _, labels in batches) == 37
        assert skipping.skipped_images == broken
    for (images, labels), (all_images, all_labels), (_, indices) in zip(batches, whole, loader.epochs, strict=True):
        kept = [i for i, index in enumerate(indices.tolist()) if samples[index] not in broken]
        assert torch.equal(images, all_images[kept])
        assert torch.equal(labels, all_labels[kept])
    assert sum(len(labels) for _, labels in skipping.test_dataloader()) == 3
    assert skipping.skipped_images == [*broken, damaged_test]
    assert skipping.describe()["skipped_images"] == 4


def test_each_file_is_warned_about_once(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = damage(root / "train" / "cat" / "05.png", "truncated")
    skipping = data(root, val_split=0, broken_images="skip")
    for loader in (skipping.train_dataloader(), skipping.calibration_dataloader(), skipping.train_dataloader()):
        list(loader)
    assert [r.getMessage().count(str(broken)) for r in caplog.records if r.levelno == logging.WARNING] == [1]


def test_what_is_too_much_to_skip_is_an_error(root: Path) -> None:
    for number in range(11):
        damage(root / "train" / CLASSES[number % 2] / f"{number:02d}.png", "truncated")
    skipping = data(root, val_split=0, broken_images="skip", batch_size=40)
    with pytest.raises(ValueError, match="11 of 40 images cannot be decoded.*leaves out 10 at most"):
        list(skipping.train_dataloader())
    with pytest.raises(ValueError, match="none of the 1 images of a batch can be decoded.*larger batch"):
        list(data(root, val_split=0, broken_images="skip", batch_size=1).train_dataloader())


def test_ranks_bring_together_what_they_skipped(root: Path) -> None:
    skipping = data(root, val_split=0, broken_images="skip")
    files = [path for path, _ in skipping.images.augmented.samples]  # pyright: ignore[reportAttributeAccessIssue]

    def union(of_another_rank: list[int], marks: torch.Tensor) -> torch.Tensor:
        other = torch.zeros_like(marks)
        other[[index for index in of_another_rank if index < len(marks)]] = 1
        return torch.maximum(marks, other)

    skipping.images.augmented.broken.found(7, OSError("truncated"))  # pyright: ignore[reportAttributeAccessIssue]
    skipping.merge_skipped_(partial(union, [30]))
    assert skipping.skipped_images == [files[7], files[30]]
    with pytest.raises(ValueError, match="12 of 40"):
        skipping.merge_skipped_(partial(union, list(range(20, 31))))


def test_another_policy_is_refused() -> None:
    with pytest.raises(ValueError, match="data.broken_images is stop or skip, not 'ignore'"):
        data(Path("anywhere"), broken_images="ignore")


@pytest.mark.parametrize(("policy", "workers"), [("stop", 0), ("skip", 0), ("skip", 2)])
def test_a_folder_that_vanishes_is_never_skipped(root: Path, policy: str, workers: int) -> None:
    module = data(root, broken_images=policy, num_workers=workers, batch_size=2)
    batches = iter(module.train_dataloader())
    next(batches)
    (root / "train").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=f"cannot read the image .*png: {root}/train was there .*resume") as e:
        list(batches)
    assert "\n" not in str(e.value)
    assert module.skipped_images == []


class Vanishing(L.Callback):
    """Takes the folder away in the middle of the second epoch."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        if trainer.current_epoch == 1 and trainer.global_step == 6 and self.folder.exists():
            self.folder.rename(self.folder.with_name("elsewhere"))


def fit(folder: Path, data: ImageFolderDataModule, *callbacks: L.Callback, resume: bool = False) -> QuantModule:
    torch.manual_seed(0)
    network = QuantizedNetwork(ResNetCifar(8), BitPlaneQuantizer)
    module = QuantModule(network, num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.01, momentum=0.9))
    checkpoint = ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)
    trainer = L.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, callbacks=[*callbacks, checkpoint], num_sanity_val_steps=0,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
        plugins=[AtomicCheckpointIO()],
    )  # fmt: skip
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["stop", "skip"])
def test_a_run_whose_folder_vanishes_ends_with_a_checkpoint_that_goes_on(
    root: Path, tmp_path: Path, policy: str
) -> None:
    whole = fit(tmp_path / "whole", data(root))
    with pytest.raises(FileNotFoundError, match="is gone"):
        fit(tmp_path / "run", data(root, broken_images=policy), Vanishing(root / "train"))
    assert load_checkpoint(tmp_path / "run" / "last.ckpt")["epoch"] == 0
    (root / "elsewhere").rename(root / "train")
    resumed = fit(tmp_path / "run", data(root, broken_images=policy), resume=True)
    for key, value in whole.state_dict().items():
        assert not isinstance(value, torch.Tensor) or torch.equal(value, resumed.state_dict()[key]), key


@pytest.mark.filterwarnings("ignore")
def test_the_log_counts_skipped_files_every_epoch(root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for number in (1, 2, 3):
        damage(root / "train" / "cat" / f"{number:02d}.png", "truncated")
    module = data(root, broken_images="skip", num_workers=2, val_split=4)
    fit(tmp_path, module, SkippedImages())
    lines = [record.getMessage() for record in caplog.records if "left out since" in record.getMessage()]
    assert lines == ["broken images left out since this start of the run: 3"] * 3
    assert len(module.skipped_images) == 3
