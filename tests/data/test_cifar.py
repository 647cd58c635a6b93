"""CIFAR files: read without running them, checked, and missing ones explained."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch

from bsq_lightning.data import CIFAR10DataModule, CIFAR100DataModule


def batch(count: int, labels: str = "labels", classes: int = 10) -> dict[Any, Any]:
    random = np.random.default_rng(count)
    return {
        "data": random.integers(256, size=(count, 3072), dtype=np.uint8),
        labels: random.integers(classes, size=count).tolist(),
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A small CIFAR-10 in the standard layout, of files with 10, 11, ... images."""
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for extra, name in enumerate([*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]):
        (folder / name).write_bytes(pickle.dumps(batch(10 + extra), protocol=2))
    return tmp_path


def module(root: Path, **kwargs: Any) -> CIFAR10DataModule:
    return CIFAR10DataModule(str(root), download=False, **{"val_split": 10, **kwargs})


def test_files_are_joined_in_order(root: Path) -> None:
    data = module(root)
    data.setup()
    assert (data.train_size, data.val_size, data.test_size) == (50, 10, 15)
    pixels = np.concatenate([batch(10 + extra)["data"] for extra in range(5)]).reshape(-1, 3, 32, 32)
    assert torch.equal(data.images.plain.images, torch.from_numpy(pixels))  # pyright: ignore[reportAttributeAccessIssue]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (15, 3, 32, 32)
    assert labels.tolist() == batch(15)["labels"]


def test_root_may_be_the_folder_itself(root: Path) -> None:
    assert module(root / "cifar-10-batches-py").test_size == 15


@pytest.mark.parametrize("protocol", range(6))
def test_every_pickle_protocol_and_bytes_as_keys(root: Path, protocol: int) -> None:
    content = {key.encode(): value for key, value in batch(15).items()}
    content[b"batch_label"] = b"testing batch 1 of 1"
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    assert module(root).test_size == 15


def test_numpy_1_names_are_read(root: Path) -> None:
    path = root / "cifar-10-batches-py" / "test_batch"
    content = path.read_bytes()
    other = content.replace(b"numpy._core.", b"numpy.core.")
    if other == content:
        other = content.replace(b"numpy.core.", b"numpy._core.")
    assert other != content
    path.write_bytes(other)
    assert module(root).test_size == 15


def test_cifar100(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    (folder / "train").write_bytes(pickle.dumps(batch(200, "fine_labels", 100)))
    (folder / "test").write_bytes(pickle.dumps(batch(20, "fine_labels", 100)))
    data = CIFAR100DataModule(str(tmp_path), download=False, val_split=0.1)
    assert (data.num_classes, data.train_size, data.val_size, data.test_size) == (100, 180, 20, 20)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


def test_code_in_a_file_is_not_run(root: Path) -> None:
    marker = root / "was_run"
    hostile = pickle.dumps(batch(15) | {"batch_label": Payload(marker)})
    pickle.loads(hostile)
    assert marker.exists()
    marker.unlink()
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(hostile)
    with pytest.raises(ValueError, match=r"test_batch .*asks for .*, which is refused.*data.root"):
        module(root).setup()
    assert not marker.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot read"),
        (pickle.dumps(batch(15))[:20000], "cannot read"),
        (b"<html>404</html>", "cannot read"),
        (pickle.dumps([1, 2]), "no dictionary but list"),
        (pickle.dumps({"labels": [1]}), "no images"),
        (pickle.dumps(batch(15) | {"data": np.zeros((15, 3071), np.uint8)}), "no images"),
        (pickle.dumps(batch(15) | {"data": np.zeros((15, 3072))}), "no images"),
        (pickle.dumps(batch(15) | {"data": np.array(3, np.uint8)}), "no images"),
        (pickle.dumps(batch(15) | {"labels": [0] * 14}), "no label for every image"),
        (pickle.dumps(batch(15) | {"labels": ["cat"] * 15}), "no label for every image"),
        (pickle.dumps(batch(15) | {"labels": [10] * 15}), r"labels outside 0\.\.9"),
        (pickle.dumps({"data": np.zeros((0, 3072), np.uint8), "labels": np.zeros(0, int)}), "or none"),
    ],
)
def test_damaged_and_foreign_files_are_named(root: Path, content: bytes, message: str) -> None:
    (root / "cifar-10-batches-py" / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match=f"{message}.*data.root") as caught:
        module(root).setup()
    assert "data_batch_3" in str(caught.value)


def test_absent_images_name_the_remedies(tmp_path: Path) -> None:
    data = module(tmp_path)
    data.prepare_data()
    with pytest.raises(FileNotFoundError, match="data.download is false.*data.root.*BSQ_DATA.*data=digits"):
        data.setup()


def test_failed_download_names_the_remedies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.utils.download_and_extract_archive", no_network)
    with pytest.raises(FileNotFoundError, match="no network.*data.root.*BSQ_DATA.*data=digits"):
        CIFAR10DataModule(str(tmp_path)).prepare_data()


def test_real_cifar10(bsq_data: Path) -> None:
    if not (bsq_data / "cifar-10-batches-py").is_dir():
        pytest.skip("needs cifar-10-batches-py in the folder that BSQ_DATA names")
    data = CIFAR10DataModule(str(bsq_data), download=False)
    assert (data.train_size, data.val_size, data.test_size) == (45_000, 5_000, 10_000)
    pixels, labels = data.images.plain.images, data.images.plain.labels  # pyright: ignore[reportAttributeAccessIssue]
    assert torch.equal(labels.bincount(), torch.full((10,), 5000))
    mean = torch.stack([part.float().mean((0, 2, 3)) for part in pixels.split(10_000)]).mean(0) / 255
    torch.testing.assert_close(mean, torch.tensor(data.mean), rtol=0, atol=2e-4)
    images, _ = next(iter(data.train_dataloader()))
    assert images.shape == (128, 3, 32, 32)
