"""Loggers: built once for all stages of a run, told how it goes, and closed with how it ended."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf

from bsq_lightning.cli.config import instantiate
from bsq_lightning.loggers.run_mirror import RunMirror, end_of_stage
from bsq_lightning.run_folder import RunFolder


def build_loggers(cfg: DictConfig, folder: RunFolder) -> list[Logger]:
    """The loggers of the config, next to the run folder's own files; none of them is connected yet."""
    names = run_names(cfg)
    given = {"save_dir": str(folder.path), "group": sweep_name(), "tags": list(names.values())[:3]}
    if given["group"] is None:
        given["name"] = "-".join(names.values())
    return [
        instantiate(config, **{key: given[key] for key in given if key in config and config[key] is None})
        for config in (cfg.logger or {}).values()
        if config
    ]


def run_names(cfg: DictConfig) -> dict[str, str]:
    """What a run is called by, in order: model, data, method, the method's knob with its value, and the seed."""
    model = cfg.model.get("model_name") or cfg.model["_target_"].rpartition(".")[2]
    data = cfg.data["_target_"].rpartition(".")[2].removesuffix("DataModule").lower()
    quant = cfg.quant or {"method": "float"}
    names = {"model": str(model), "data": data, "method": str(quant["method"]).replace(" ", "_")}
    knob = quant.get("knob")
    value = OmegaConf.select(cfg, knob) if knob else None
    if knob and value is not None:
        names["knob"] = f"{knob.rpartition('.')[2]}={format(value, 'g') if isinstance(value, float) else value}"
    return {**names, "seed": f"seed={cfg.seed}"}


def sweep_name() -> str | None:
    """The sweep folder's name, which our launchers give to their children, or None outside of a sweep."""
    if os.environ.get("BSQ_SWEEP"):
        return os.environ["BSQ_SWEEP"]
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return None
    return Path(HydraConfig.get().sweep.dir).resolve().name


class Mirrors:
    """The loggers of a run in progress."""

    def __init__(self, loggers: list[Logger], folder: RunFolder) -> None:
        self.loggers = loggers
        self.folder = folder

    def begin_stage(self, before: Sequence[str]) -> None:
        """Tells how many steps the stages ``before`` it took."""
        steps = sum(count for name, count in self.folder.steps().items() if name in before)
        for mirror in self.mirrors:
            mirror.begin_stage(steps)

    def log_result(self, stage: str, result: dict[str, Any]) -> None:
        """A stage's end: its network measured in float32, under ``end/``."""
        for logger in self.loggers:
            logger.log_metrics(end_of_stage(result), max(0, self.folder.steps().get(stage, 0) - 1))

    def log_summary(self, summary: dict[str, Any]) -> None:
        for mirror in self.mirrors:
            mirror.log_summary(summary)

    @property
    def mirrors(self) -> list[RunMirror]:
        """Those that know of stages; a logger of the user's own need not."""
        return [logger for logger in self.loggers if isinstance(logger, RunMirror)]


@contextmanager
def mirrored(cfg: DictConfig, folder: RunFolder) -> Iterator[Mirrors]:
    """Connects the loggers, before any training, and closes them with the true state in which the block ended."""
    mirrors = Mirrors(build_loggers(cfg, folder), folder)
    config: Any = OmegaConf.to_container(cfg, resolve=True)
    exit_code = 1
    try:
        for mirror in mirrors.mirrors:
            mirror.begin(config)
        yield mirrors
        exit_code = 0
    finally:
        for mirror in mirrors.mirrors:
            mirror.close(exit_code)
