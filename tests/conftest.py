"""What all tests share: a seed, and the real data where it is."""

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from bsq_lightning.cli.terminal import Terminal


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_said_later() -> Iterator[None]:
    """A command that ran in this process has set up logging to the terminal, which is the next test's."""
    yield
    for handler in [each for each in logging.root.handlers if isinstance(each, Terminal)]:
        logging.root.removeHandler(handler)


@pytest.fixture
def bsq_data() -> Path:
    """Folder with the real data; without it the test is skipped and says so."""
    folder = os.environ.get("BSQ_DATA", "")
    if not folder or not (Path(folder) / "cifar-10-batches-py").is_dir():
        pytest.skip("BSQ_DATA is not set to a folder with cifar-10-batches-py: real images are not tested")
    return Path(folder)
