"""A run folder opened again: its newest network, on this machine, after the folder has been looked at with distrust."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bsq_lightning.checkpoint_io import load_checkpoint, load_state
from bsq_lightning.cli.building.experiment import Experiment
from bsq_lightning.cli.config import read_config
from bsq_lightning.cli.trust import check_settled, check_targets, trusted_packages
from bsq_lightning.data import ImageDataModule
from bsq_lightning.module import QuantModule
from bsq_lightning.run_folder import RunFolder


@dataclass(frozen=True)
class OpenedRun:
    """What a run folder holds.

    Args:
        folder: the folder.
        experiment: builds its parts.
        datamodule: its data, ready.
        module: the network of the newest checkpoint.
        stage: the stage of that checkpoint.
        epoch: its epoch, counted from 1.
    """

    folder: RunFolder
    experiment: Experiment
    datamodule: ImageDataModule
    module: QuantModule
    stage: str
    epoch: int

    @property
    def accuracy(self) -> float | None:
        """The test accuracy that its summary tells; None of a run that is not finished."""
        return self.folder.summary()["accuracy"]["final"]["test/acc"] if self.folder.is_finished else None


def open_run(run: Any, trust: Any, data_root: str | None = None, accelerator: str | None = None) -> OpenedRun:
    """Builds the newest network of a run folder.

    Args:
        run: the folder.
        trust: packages that its config may name.
        data_root: where its data is now, if it moved.
        accelerator: of this machine, if it is another one.

    Raises:
        FileNotFoundError: it is no run folder, or holds no checkpoint.
        ValueError: its config names what is not trusted, or its checkpoint does not belong to it.
    """
    folder = RunFolder.existing(run)
    config: DictConfig = read_config(folder.config)
    plain = OmegaConf.to_container(config)
    check_settled(plain, folder.config)
    check_targets(plain, folder.config, trusted_packages(trust))
    if data_root is not None:
        config.data.root = data_root
    if accelerator is not None:
        config.trainer.accelerator = accelerator
    # Each of several processes would start the others again, and print.
    config.trainer.devices = config.trainer.num_nodes = 1
    config.trainer.strategy = "auto"
    checkpoint = load_checkpoint(folder.last)
    experiment = Experiment(config)
    datamodule = experiment.datamodule()
    network = experiment.first_network(checkpoint["stage"], datamodule.num_classes, restored=True)
    module = experiment.module(network, checkpoint["stage"], datamodule.num_classes)
    load_state(module, checkpoint, folder.last)
    last = (experiment.stage(checkpoint["stage"]).epochs or 1) - 1
    network.on_epoch(checkpoint["epoch"] / last if last > 0 else 1.0)
    return OpenedRun(folder, experiment, datamodule, module, checkpoint["stage"], checkpoint["epoch"] + 1)
