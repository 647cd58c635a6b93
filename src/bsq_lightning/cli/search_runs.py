"""The trainings of a budget search: one command for each alpha, one float stage for all of them."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from bsq_lightning.cli.bracket import Trial
from bsq_lightning.cli.budget import BudgetSearch, Target
from bsq_lightning.cli.build import (
    build_net,
    build_network,
    check_constructors,
    has_float_weights,
    instantiate,
    planned_stages,
)  # fmt: skip
from bsq_lightning.cli.launch import hydra_arguments, slots_of
from bsq_lightning.cli.points import float_command, run_points, train_command
from bsq_lightning.run_folder import RunFolder, SweepFolder

log = logging.getLogger(__name__)


class SearchRuns:
    """Trains points of a search in ``path``.

    Args:
        cfg: the search's config: train's and ``target`` and ``search``.
        path: folder of the search.
        hydra: Hydra's own config, for the overrides and the launcher's slots.

    Raises:
        ValueError: the config has no bits stage and alpha, or cannot be built.
    """

    def __init__(self, cfg: DictConfig, path: Path, hydra: Any) -> None:
        self.cfg, self.path = cfg.copy(), path
        with open_dict(self.cfg):
            del self.cfg["target"], self.cfg["search"]
        stages = planned_stages(self.cfg)
        if "bits" not in stages or OmegaConf.select(cfg, "reg.alpha") is None:
            raise ValueError("a search needs a bits stage and reg.alpha: use quant=bsq reg=bit_group_lasso")
        if cfg.until is not None:
            raise ValueError("until belongs to the search itself: leave it out")
        check_constructors(self.cfg, {})
        self.shares_float = stages[0] == "float" and not cfg.float_stage
        self.slots = slots_of(hydra.launcher.get("slots"), hydra.launcher.get("threads"), cfg.trainer.devices)
        own = ("target.", "search.", "reg.alpha=", "hydra.")
        self.overrides = [o for o in hydra.overrides.task if not o.lstrip("+").startswith(own)]
        self.arguments = hydra_arguments(hydra, "train" if hydra.job.config_name == "search" else None)
        stage = cfg.stages.bits
        self.adjustments = math.ceil(stage.epochs / stage.adjust_every_n_epochs)

    def start_size(self, target: Target) -> float:
        """Size before the first adjustment, in the target's unit.

        Raises:
            ValueError: not even a network without a single bit would be inside the target.
        """
        datamodule = instantiate(self.cfg.data)
        network = build_network(self.cfg, build_net(self.cfg, getattr(datamodule, "num_classes", 10)), "bits")
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
        """Trains each alpha to the end of its bits stage."""
        shared = self._float_stage()
        commands = {
            path: train_command(path, [*self.overrides, f"reg.alpha={alpha:g}", "until=bits", *shared], self.arguments)
            for path, alpha in alphas.items()
        }
        SweepFolder(self.path).add_points({path.name: [f"reg.alpha={alpha:g}"] for path, alpha in alphas.items()})
        return run_points(commands, self.slots, self.path.name, watch)

    def _float_stage(self) -> list[str]:
        if not self.shares_float:
            return []
        path = SweepFolder(self.path).float_stages / "shared"
        if "float" not in RunFolder(path).results():
            command = float_command(path, self.overrides, self.arguments)
            if not run_points({path: command}, self.slots, self.path.name)[path]:
                raise ValueError(f"the float stage failed: {(RunFolder(path).error() or {}).get('message')}")
        return [f"float_stage='{path}'"]

    def choose(self, search: BudgetSearch, found: list[Trial]) -> Trial:
        """The winner: the best on validation images the float weights have not seen, else the largest."""
        complete = [trial for trial in found if not trial.stopped]
        if complete and not has_float_weights(self.cfg) and self.cfg.data.val_split:
            accuracy = {t.alpha: search.folder(t.alpha).results()["bits"]["val/acc"] for t in complete}
            return max(complete, key=lambda trial: accuracy[trial.alpha])
        return (complete or found)[0]

    def finish(self, folder: RunFolder) -> None:
        """Takes the winner through its remaining stages.

        Raises:
            ValueError: it failed.
        """
        if folder.is_finished:
            return
        alpha = f"reg.alpha={folder.path.name.removeprefix('alpha=')}"
        command = train_command(folder.path, [*self.overrides, alpha, *self._float_stage()], self.arguments)
        log.info("%s wins and goes on to its end", folder.path.name)
        if not run_points({folder.path: command}, self.slots, self.path.name)[folder.path]:
            raise ValueError(f"the winner failed: {(folder.error() or {}).get('message')}")
