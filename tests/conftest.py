"""What all tests share: a seed, and the real data where it is."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def bsq_data() -> Path:
    """Folder with the real data; without it the test is skipped and says so."""
    folder = os.environ.get("BSQ_DATA", "")
    if not folder or not (Path(folder) / "cifar-10-batches-py").is_dir():
        pytest.skip("BSQ_DATA is not set to a folder with cifar-10-batches-py: real images are not tested")
    return Path(folder)
