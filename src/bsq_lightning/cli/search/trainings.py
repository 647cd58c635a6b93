"""The trainings of a budget search: one command for each value of the knob, one float stage for all of them."""

import copy
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bsq_lightning.cli.building.checks import check_constructors
from bsq_lightning.cli.building.networks import build_net, build_network
from bsq_lightning.cli.building.stage import FLOAT, has_float_weights, planned_stages, searched_stage, stage_settings
from bsq_lightning.cli.config import instantiate
from bsq_lightning.cli.search.accident import accident_of
from bsq_lightning.cli.search.bracket import Trial
from bsq_lightning.cli.search.judge import Judge
from bsq_lightning.cli.sweep.launch import hydra_arguments, slots_of
from bsq_lightning.cli.sweep.points import float_command, run_points, train_command
from bsq_lightning.cli.trust import own_packages
from bsq_lightning.run_folder import RunFolder, SweepFolder
from bsq_lightning.scheme import Scheme

log = logging.getLogger(__name__)


class SearchRuns:
    """Trains points of a search in ``path``.

    Args:
        cfg: the search's config: train's and ``target`` and ``search``.
        path: folder of the search.
        hydra: Hydra's own config, for the overrides and the launcher's slots.

    Raises:
        ValueError: the method has no knob or no stage that finds bits, or cannot be built.
    """

    def __init__(self, cfg: DictConfig, path: Path, hydra: Any) -> None:
        self.cfg, self.path = cfg.copy(), path
        with open_dict(self.cfg):
            del self.cfg["target"], self.cfg["search"]
        stages = planned_stages(self.cfg)
        knob = cfg.quant.get("knob") if cfg.quant else None
        stage = searched_stage(self.cfg)
        if stage is None or knob is None or OmegaConf.select(cfg, knob) is None:
            raise ValueError(
                "a search needs a stage that finds bits, and a knob that decides what it finds: use quant=bsq "
                "reg=bit_group_lasso, or another method whose file names a knob (quant.knob) and a stage that adjusts"
            )
        if cfg.until is not None:
            raise ValueError("until belongs to the search itself: leave it out")
        self.stage, self.knob = stage, str(knob)
        self.first_value = float(OmegaConf.select(cfg, self.knob))
        self.grows = bool(cfg.quant.get("knob_grows"))
        check_constructors(self.cfg, {}, hydra.overrides.task)
        self.shares_float = stages[0] == FLOAT and not cfg.float_stage
        self.slots = slots_of(hydra.launcher.get("slots"), hydra.launcher.get("threads"), cfg.trainer.devices)
        own = ("target.", "search.", f"{self.knob}=", "hydra.")
        self.overrides = [o for o in hydra.overrides.task if not o.lstrip("+").startswith(own)]
        self.arguments = hydra_arguments(hydra, "train" if hydra.job.config_name == "search" else None)
        settings = stage_settings(self.cfg, stage)
        self.adjustments = math.ceil((settings.epochs or 1) / (settings.adjust_every_n_epochs or settings.epochs or 1))

    def untrained(self) -> tuple[Scheme, Judge]:
        """What every trial starts with: the scheme before the first adjustment, and the judge of its graph."""
        datamodule = instantiate(self.cfg.data)
        net = build_net(self.cfg, getattr(datamodule, "num_classes", 10))
        judge = Judge(copy.deepcopy(net), datamodule.image_size)
        network = build_network(self.cfg, net, self.stage)
        network.count_macs_(datamodule.image_size)
        return network.scheme(), judge

    def train(self, values: dict[Path, float], watch: Callable[[RunFolder], str | None]) -> dict[Path, bool]:
        """Trains each value to the end of the stage that finds the bits; one that is there already is left as it is."""
        shared = self._float_stage()
        knobs = {path: f"{self.knob}={value:g}" for path, value in values.items()}
        commands = {
            path: train_command(path, [*self.overrides, knob, f"until={self.stage}", *shared], self.arguments)
            for path, knob in knobs.items()
            if self.stage not in RunFolder(path).results()
        }
        SweepFolder(self.path).add_points({path.name: [knob] for path, knob in knobs.items()})
        ended = run_points(commands, self.slots, self.path.name, watch)
        return {path: ended.get(path, True) for path in knobs}

    def _float_stage(self) -> list[str]:
        if not self.shares_float:
            return []
        path = SweepFolder(self.path).float_stages / "shared"
        if FLOAT not in RunFolder(path).results():
            trusted = own_packages(OmegaConf.to_container(self.cfg, resolve=True))
            command = float_command(path, self.overrides, self.arguments, trusted)
            if not run_points({path: command}, self.slots, self.path.name)[path]:
                message = (RunFolder(path).error() or {}).get("message")
                raise accident_of(RunFolder(path)) or ValueError(f"the float stage failed: {message}")
        return [f"float_stage='{path}'"]

    def best(self, complete: dict[Path, Trial]) -> Path:
        """The best on validation images that the float weights have not seen, else the largest."""
        if not has_float_weights(self.cfg) and self.cfg.data.val_split:
            return max(complete, key=lambda path: RunFolder(path).results()[self.stage]["val/acc"])
        return max(complete, key=lambda path: complete[path].size)

    def finish(self, folder: RunFolder) -> bool:
        """Takes a run through its remaining stages; whether it succeeded."""
        if folder.is_finished:
            return True
        knob = f"{self.knob}={folder.path.name.rpartition('=')[2]}"
        command = train_command(folder.path, [*self.overrides, knob, *self._float_stage()], self.arguments)
        log.info("%s is the best so far and goes on to its end", folder.path.name)
        return run_points({folder.path: command}, self.slots, self.path.name)[folder.path]
