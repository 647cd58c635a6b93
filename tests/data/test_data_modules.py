"""What all data modules share: split, order, loaders, and a resume by Lightning in the middle of an epoch."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn

from bsq_lightning.data import DigitsDataModule, EpochLoader, TensorImages


def indices_of(loader: EpochLoader) -> list[int]:
    return [index for _, indices in loader.epochs for index in indices.tolist()]


def test_split_is_disjoint_fixed_and_seeded() -> None:
    data, again, other = DigitsDataModule(), DigitsDataModule(), DigitsDataModule(seed=2)
    train, val = (set(indices_of(loader)) for loader in (data.train_dataloader(), data.val_dataloader()))
    assert not train & val
    assert train | val == set(range(1797 - 360))
    later = again.val_dataloader()
    later.epochs.set_epoch(9)
    assert set(indices_of(later)) == val != set(indices_of(other.val_dataloader()))
    assert torch.equal(data.images.test[0, torch.arange(360)][0], other.images.test[0, torch.arange(360)][0])


def test_setup_reads_once() -> None:
    data = DigitsDataModule()
    data.setup("fit")
    images = data.images
    data.setup("test")
    assert data.images is images


def test_evaluation_and_calibration_images_are_plain_and_in_fixed_order() -> None:
    data = DigitsDataModule(batch_size=100)
    for loader in (data.val_dataloader(), data.test_dataloader(), data.calibration_dataloader()):
        images, labels = next(iter(loader))
        loader.epochs.set_epoch(3)
        same_images, same_labels = next(iter(loader))
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)
        assert images.shape[1:] == (3, 16, 16)
    assert set(indices_of(data.calibration_dataloader())) == set(indices_of(data.train_dataloader()))
    assert len(labels.unique()) == 10


def test_training_images_change_with_the_epoch() -> None:
    loader = DigitsDataModule().train_dataloader()
    first = next(iter(loader))[0]
    assert torch.equal(next(iter(loader))[0], first)
    loader.epochs.set_epoch(1)
    assert not torch.equal(next(iter(loader))[0], first)


def test_digits_fill_the_range_and_are_normalized() -> None:
    data = DigitsDataModule()
    assert isinstance(data.images.plain, TensorImages)
    assert data.images.plain.images.dtype == torch.uint8
    assert data.images.plain.images.max() == 255
    images = data.images.plain.normalize(data.images.plain[0, torch.arange(1437)][0])
    assert images.mean().abs() < 0.02
    assert (images.std() - 1).abs() < 0.02


def test_no_validation_split_uses_the_test_set() -> None:
    data = DigitsDataModule(val_split=0)
    assert data.val_is_test
    assert (data.train_size, data.val_size) == (1437, 360)
    assert indices_of(data.val_dataloader()) == indices_of(data.test_dataloader())
    assert data.describe()["val_is_test"] is True


def test_limit_and_fraction() -> None:
    data = DigitsDataModule(val_split=0.5, limit_train=64)
    assert data.describe() | {"train": 64, "val": 718, "classes": 10, "image_size": 16} == data.describe()
    assert len(data.train_dataloader()) == 1
    assert indices_of(data.val_dataloader()) == indices_of(DigitsDataModule(val_split=0.5).val_dataloader())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "data.batch_size"),
        ({"val_split": -1}, "data.val_split"),
        ({"val_split": 1.0}, "data.val_split"),
        ({"limit_train": 0}, "data.limit_train"),
        ({"val_split": 1437}, "data.val_split=1437 leaves none of the 1437"),
        ({"val_split": 1e-4}, "none .* to validate on"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DigitsDataModule(**arguments).setup()


class Recorder(L.LightningModule):
    """Trains a little and writes down a sum of the pixels of every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3 * 16 * 16, 10)
        self.seen: list[tuple[int, float]] = []

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        self.seen.append((self.current_epoch, float(images.double().sum())))
        return nn.functional.cross_entropy(self.layer(images.flatten(1)), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("step", [5, 8])
def test_lightning_resumes_with_the_next_batch(tmp_path: Path, workers: int, step: int) -> None:
    def fit(checkpoint: str | None) -> list[tuple[int, float]]:
        module, data = Recorder(), DigitsDataModule(limit_train=64, batch_size=16, num_workers=workers)
        callback = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=1, save_top_k=-1)
        trainer = L.Trainer(
            max_epochs=3,
            accelerator="cpu",
            logger=False,
            callbacks=[callback],
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, datamodule=data, ckpt_path=checkpoint)
        return module.seen

    whole = fit(None)
    assert len(set(whole)) == 12
    assert fit(str(tmp_path / f"step={step}.ckpt")) == whole[step:]
