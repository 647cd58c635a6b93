"""Everything a run is made of. Networks, stages and Trainers are asked of it, and not of a config."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig
from torch import nn

from bsq_lightning.callbacks import RangeCalibration
from bsq_lightning.cli.building import data, networks, post_training, trainers
from bsq_lightning.cli.building.stage import (
    FLOAT,
    StageSettings,
    has_float_weights,
    planned_stages,
    searched_stage,
    stage_settings,
)
from bsq_lightning.cli.config import instantiate
from bsq_lightning.data import ImageDataModule
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.post_training import PostTrainingMethod
from bsq_lightning.quantized_tensor import QuantizedTensor
from bsq_lightning.run_folder import RunFolder


@dataclass(frozen=True)
class Experiment:
    """Builds a run's parts, each the same way for preflight, training and evaluation.

    Args:
        cfg: the settled config.
    """

    cfg: DictConfig

    @property
    def seed(self) -> int:
        return self.cfg.seed

    @cached_property
    def stages(self) -> list[str]:
        """The planned stages, in order."""
        return planned_stages(self.cfg)

    @property
    def until(self) -> str | None:
        """The last stage of this start."""
        return self.cfg.until

    @property
    def only_preflight(self) -> bool:
        return self.cfg.preflight == "only"

    def batch_limit(self, part: str) -> int | float | None:
        """Batches of an epoch at most, or their share, of training (``train``), validation and test."""
        return self.cfg.trainer.get(f"limit_{part}_batches")

    def check_memory(self, bytes_each: int) -> None:
        """Refuses more processes of so many bytes than this host has memory for."""
        trainers.check_memory(self.cfg, bytes_each)

    @property
    def compile(self) -> bool:
        return bool(self.cfg.get("compile"))

    @property
    def model(self) -> str:
        """Dotted path of the architecture."""
        return self.cfg.model["_target_"]

    def architecture(self, num_classes: int) -> dict[str, Any]:
        """How to build the plain network, as data that goes with a file."""
        return networks.architecture(self.cfg, num_classes)

    @property
    def float_stage(self) -> str | None:
        """Run folder whose float stage this run shares."""
        return self.cfg.float_stage

    @property
    def searched_stage(self) -> str | None:
        """The stage that decides the size."""
        return searched_stage(self.cfg)

    def keeps_end_of(self, stage: str) -> bool:
        """Whether the checkpoint of the end of a stage is kept: of all but the method's last, which is the newest."""
        return stage == FLOAT or stage != list(self.cfg.quant.stages)[-1]

    def stage(self, name: str) -> StageSettings:
        return stage_settings(self.cfg, name)

    @property
    def has_float_weights(self) -> bool:
        return has_float_weights(self.cfg)

    @property
    def method(self) -> dict[str, Any]:
        """What the run's method says of itself: its name, its one knob, and whether it is a line to beat."""
        quant = self.cfg.quant or {"method": "float"}
        return {"name": quant["method"], "knob": quant.get("knob"), "baseline": bool(quant.get("baseline"))}

    @property
    def quantizes_without_training(self) -> bool:
        return bool(self.cfg.get("ptq"))

    @property
    def calibration_images(self) -> int:
        """Training images that a method without training looks at."""
        return self.cfg.images

    @property
    def source(self) -> tuple[RunFolder, Path] | None:
        """Run folder and checkpoint that a method without training began with."""
        return post_training.source_of(self.cfg)

    def methods(self, names: Sequence[str], codes: Mapping[str, QuantizedTensor]) -> dict[str, PostTrainingMethod]:
        return post_training.methods_of(self.cfg, names, codes)

    def datamodule(self) -> ImageDataModule:
        return data.build_datamodule(self.cfg)

    def net(self, num_classes: int) -> nn.Module:
        """The plain float network, with its float weights where some are given."""
        return networks.build_net(self.cfg, num_classes)

    def network(self, net: nn.Module, stage: str) -> QuantizedNetwork:
        return networks.build_network(self.cfg, net, stage)

    def first_network(self, stage: str, num_classes: int, restored: bool) -> QuantizedNetwork:
        return networks.first_network(self.cfg, stage, num_classes, restored)

    def next_network(
        self, network: QuantizedNetwork, stage: str, num_classes: int, float_weights: Path | None
    ) -> QuantizedNetwork:
        return networks.next_network(self.cfg, network, stage, num_classes, float_weights)

    def module(self, network: QuantizedNetwork, stage: str, num_classes: int) -> QuantModule:
        return networks.build_module(self.cfg, network, stage, num_classes)

    def teach(self, module: QuantModule, stage: str, num_classes: int, float_weights: Path | None) -> None:
        """Gives a module that will be trained its float teacher, if the run has one."""
        module.distillation = networks.build_distillation(self.cfg, stage, num_classes, float_weights)

    def callbacks(self, folder: Path, stage: str) -> list[L.Callback]:
        return trainers.build_callbacks(self.cfg, folder, stage)

    def calibration(self) -> RangeCalibration:
        return trainers.calibration_of(self.cfg)

    def trainer(self, **changes: Any) -> L.Trainer:
        return trainers.build_trainer(self.cfg, **changes)

    def test_trainer(self) -> L.Trainer:
        return trainers.build_test_trainer(self.cfg)

    @property
    def arithmetic(self) -> dict[str, str]:
        """Lightning's names of the arithmetic of training and test."""
        return {"train": str(self.cfg.trainer.precision), "test": trainers.test_arithmetic(self.cfg)}

    @property
    def has_buckets(self) -> bool:
        """Whether DDP will have buckets of its own beside the gradients."""
        strategy = self.cfg.trainer.get("strategy")
        shared = isinstance(strategy, DictConfig) and strategy.get("gradient_as_bucket_view", False)
        return trainers.device_count(self.cfg) > 1 and not shared

    def check_regularizer(self) -> bool:
        """Runs the regularizer's constructor; whether there is one.

        Raises:
            ValueError: its constructor refuses.
        """
        return instantiate(self.cfg.reg) is not None
