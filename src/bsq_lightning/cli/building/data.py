"""The data from a config."""

import os

from omegaconf import DictConfig

from bsq_lightning.cli.config import instantiate
from bsq_lightning.data import ImageDataModule
from bsq_lightning.distributed import going_first


def build_datamodule(cfg: DictConfig) -> ImageDataModule:
    """The data, ready: downloaded if need be and set up."""
    datamodule = instantiate(cfg.data)
    # One process of each host downloads.
    with going_first(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"):
        datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule
