"""The trainings of a budget search: one command for each alpha, one float stage for all of them."""

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
from bsq_lightning.cli.search.bracket import Trial
from bsq_lightning.cli.search.budget import BudgetSearch, Target
from bsq_lightning.cli.sweep.launch import hydra_arguments, slots_of
from bsq_lightning.cli.sweep.points import float_command, run_points, train_command
from bsq_lightning.cli.trust import own_packages
from bsq_lightning.run_folder import RunFolder, SweepFolder

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
        self.knob = cfg.quant.get("knob") if cfg.quant else None
        stage = searched_stage(self.cfg)
        if stage is None or self.knob is None or OmegaConf.select(cfg, self.knob) is None:
            raise ValueError(
                "a search needs a bits stage, and a knob that decides what it finds: use quant=bsq "
                "reg=bit_group_lasso, or another method whose file names a knob (quant.knob) and a stage that adjusts"
            )
        if self.knob.rpartition(".")[2] != "alpha":
            raise ValueError(
                f"a search raises its knob until the network is small enough, and {self.knob} of this method does not "
                "work that way: set it to what you want, and train"
            )
        if cfg.until is not None:
            raise ValueError("until belongs to the search itself: leave it out")
        self.stage = stage
        self.first_value = float(OmegaConf.select(cfg, self.knob))
        check_constructors(self.cfg, {})
        self.shares_float = stages[0] == FLOAT and not cfg.float_stage
        self.slots = slots_of(hydra.launcher.get("slots"), hydra.launcher.get("threads"), cfg.trainer.devices)
        own = ("target.", "search.", f"{self.knob}=", "hydra.")
        self.overrides = [o for o in hydra.overrides.task if not o.lstrip("+").startswith(own)]
        self.arguments = hydra_arguments(hydra, "train" if hydra.job.config_name == "search" else None)
        settings = stage_settings(self.cfg, stage)
        self.adjustments = math.ceil((settings.epochs or 1) / (settings.adjust_every_n_epochs or settings.epochs or 1))

    def start_size(self, target: Target) -> float:
        """Size before the first adjustment, in the target's unit.

        Raises:
            ValueError: not even a network without a single bit would be inside the target.
        """
        datamodule = instantiate(self.cfg.data)
        network = build_network(self.cfg, build_net(self.cfg, getattr(datamodule, "num_classes", 10)), self.stage)
        network.count_macs_(datamodule.image_size)
        scheme = network.scheme()
        floor = target.size(scheme.at(0))
        if floor >= target.value:
            raise ValueError(
                f"the target of {target.value:g} {target.unit} is out of reach: what stays float alone takes "
                f"{floor:.4g} {target.unit} (batch norm, shortcuts, scales)"
            )
        return target.size(scheme)

    def train(self, alphas: dict[Path, float], watch: Callable[[RunFolder], str | None]) -> dict[Path, bool]:
        """Trains each alpha to the end of the stage that finds the bits."""
        shared = self._float_stage()
        commands = {
            path: train_command(path, [*self.overrides, *self._turned(alpha), *shared], self.arguments)
            for path, alpha in alphas.items()
        }
        SweepFolder(self.path).add_points({path.name: [f"{self.knob}={alpha:g}"] for path, alpha in alphas.items()})
        return run_points(commands, self.slots, self.path.name, watch)

    def _turned(self, alpha: float) -> list[str]:
        return [f"{self.knob}={alpha:g}", f"until={self.stage}"]

    def _float_stage(self) -> list[str]:
        if not self.shares_float:
            return []
        path = SweepFolder(self.path).float_stages / "shared"
        if FLOAT not in RunFolder(path).results():
            trusted = own_packages(OmegaConf.to_container(self.cfg, resolve=True))
            command = float_command(path, self.overrides, self.arguments, trusted)
            if not run_points({path: command}, self.slots, self.path.name)[path]:
                raise ValueError(f"the float stage failed: {(RunFolder(path).error() or {}).get('message')}")
        return [f"float_stage='{path}'"]

    def choose(self, search: BudgetSearch, found: list[Trial]) -> Trial:
        """The winner: the best on validation images the float weights have not seen, else the largest."""
        complete = [trial for trial in found if not trial.stopped]
        if complete and not has_float_weights(self.cfg) and self.cfg.data.val_split:
            accuracy = {t.alpha: search.folder(t.alpha).results()[self.stage]["val/acc"] for t in complete}
            return max(complete, key=lambda trial: accuracy[trial.alpha])
        return (complete or found)[0]

    def finish(self, folder: RunFolder) -> None:
        """Takes the winner through its remaining stages.

        Raises:
            ValueError: it failed.
        """
        if folder.is_finished:
            return
        alpha = f"{self.knob}={folder.path.name.removeprefix('alpha=')}"
        command = train_command(folder.path, [*self.overrides, alpha, *self._float_stage()], self.arguments)
        log.info("%s wins and goes on to its end", folder.path.name)
        if not run_points({folder.path: command}, self.slots, self.path.name)[folder.path]:
            raise ValueError(f"the winner failed: {(folder.error() or {}).get('message')}")
