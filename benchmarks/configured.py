"""What ``python -m bsq_lightning.train`` would build from its command line."""

from pathlib import Path

import lightning as L
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from bsq_lightning.cli.building.data import build_datamodule
from bsq_lightning.cli.building.networks import build_module, build_net, build_network
from bsq_lightning.cli.building.trainers import build_callbacks
from bsq_lightning.cli.building.trainers import build_trainer as build_trainer
from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.data import ImageDataModule
from bsq_lightning.module import QuantModule


def composed(*overrides: str) -> DictConfig:
    """The config of these overrides."""
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return compose("train", overrides=["logger=none", "trainer.enable_progress_bar=false", *overrides])


def bits_stage(cfg: DictConfig) -> tuple[QuantModule, ImageDataModule]:
    """Module and data of the bits stage, from random float weights."""
    datamodule = build_datamodule(cfg)
    net = build_net(cfg, datamodule.num_classes)
    return build_module(cfg, build_network(cfg, net, "bits"), "bits", datamodule.num_classes), datamodule


def callbacks(cfg: DictConfig, folder: Path, first: L.Callback) -> list[L.Callback]:
    """``first`` before those of the config."""
    return [first, *build_callbacks(cfg, folder, "bits")]
