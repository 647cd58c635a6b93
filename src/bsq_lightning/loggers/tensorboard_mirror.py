"""TensorBoard event files in the run folder."""

from importlib.util import find_spec
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

from bsq_lightning.loggers.run_mirror import RunMirror


class TensorBoardMirror(RunMirror, TensorBoardLogger):
    """Lightning's TensorBoardLogger with one axis of steps over all stages.

    Raises:
        ValueError: the tensorboard package is missing.
    """

    def __init__(self, save_dir: str, **settings: Any) -> None:
        if find_spec("tensorboard") is None and find_spec("tensorboardX") is None:
            raise ValueError("logger=tensorboard needs the tensorboard package: pip install tensorboard")
        super().__init__(save_dir, **settings)
