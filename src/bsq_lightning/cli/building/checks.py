"""What is refused before anything is trained."""

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig, OmegaConf

from bsq_lightning.cli.building.networks import build_module, build_net, build_network
from bsq_lightning.cli.building.post_training import methods_of
from bsq_lightning.cli.building.stage import FLOAT, has_float_weights, planned_stages, stage_settings
from bsq_lightning.cli.building.trainers import build_callbacks, build_trainer, check_processes, device_count
from bsq_lightning.cli.config import instantiate
from bsq_lightning.cli.settings import check_values


def check_settings(cfg: DictConfig, asked: Sequence[str] = ()) -> None:
    """Refuses values that no setting may have, and what would train something else than what was asked.

    Args:
        cfg: a composed config.
        asked: overrides of the command line: what stands there has to matter.

    Raises:
        ValueError: a value of the wrong type or out of range, an unknown key, arithmetic below 32 bits throughout, a
            strategy that splits parameters, or nothing to compile with.
    """
    check_values(cfg)
    if cfg.get("compile"):
        _check_compiler()
    precision, strategy = str(cfg.trainer.get("precision", "32-true")), str(cfg.trainer.get("strategy", "auto"))
    if (
        precision.endswith("-true")
        and not precision.startswith(("32", "64"))
        or precision.startswith("transformer-engine")
    ):
        raise ValueError(
            f"trainer.precision={precision} turns planes and latents into {precision.split('-')[0]}, silently: "
            "use bf16-mixed or 16-mixed, which keep them in 32 bits"
        )
    if precision.startswith("64") and cfg.quant and cfg.quant.get("state_dtype"):
        raise ValueError("trainer.precision=64-true turns planes into float64: leave quant.state_dtype out")
    if cfg.get("scheme") and not (cfg.quant and cfg.quant.scheme):
        raise ValueError(
            f"the method {cfg.quant.method if cfg.quant else 'float'!r} takes no scheme: scheme=FILE goes with "
            "quant=from_scheme, or with lsq, dorefa, pact and msq"
        )
    if cfg.quant and cfg.quant.act_precision is None and not cfg.quant.scheme:
        raise ValueError("quant=from_scheme needs scheme=FILE, the scheme.json of another run")
    planned = planned_stages(cfg)
    penalty = next((each for each in asked if each.startswith("reg=")), None)
    if (
        penalty
        and cfg.reg
        and cfg.reg.get("_target_")
        and not any(stage_settings(cfg, stage).regularized for stage in planned)
    ):
        method = cfg.quant.method if cfg.quant else "float"
        raise ValueError(
            f"{penalty} would do nothing: no stage of the method {method!r} that is trained here has a penalty. "
            "Leave it out, or choose a method that has one (quant=bsq, msq, csq, cpq, fixed_point)"
        )
    if cfg.until is not None and cfg.until not in planned:
        given = " (the model has float weights)" if cfg.until == FLOAT and has_float_weights(cfg) else ""
        raise ValueError(
            f"until is the last stage of this start, one of {', '.join(planned)}, not {cfg.until!r}{given}"
        )
    if any(name in strategy.lower() for name in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"trainer.strategy={strategy} trains in processes that give only weights back, into a network that has the "
            "precisions of before the training: use trainer=ddp"
        )
    if cfg.trainer.get("sync_batchnorm") and device_count(cfg) > 1 and cfg.trainer.accelerator == "cpu":
        raise ValueError("trainer.sync_batchnorm works on GPUs only: leave it out")
    if any(name in strategy.lower() for name in ("fsdp", "deepspeed", "model_parallel")):
        raise ValueError(
            f"trainer.strategy={strategy} splits parameters between devices, and the planes of a weight with them; "
            "not supported yet: use ddp"
        )
    known = [name for name in StrategyRegistry.available_strategies() if name.startswith(("ddp", "single"))]
    if isinstance(cfg.trainer.strategy, str) and strategy not in ("auto", *known):
        raise ValueError(f"trainer.strategy={strategy} is none of Lightning's: auto, {', '.join(known)}")


def _check_compiler() -> None:
    """Raises ValueError where torch.compile would fail at the first step, minutes later and with a long traceback."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"compile=true needs a C++ compiler, and there is no {compiler} here: install it (Debian: apt-get install "
            "g++), set CXX to yours, or leave compile out"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.is_file():
        raise ValueError(
            f"compile=true needs the headers of Python, and there is no {header}: install them (Debian: apt-get "
            "install python3-dev), or leave compile out"
        )


def check_constructors(
    cfg: DictConfig, seen: dict[str, Any], asked: Sequence[str] = (), elsewhere: bool = False
) -> None:
    """Runs every constructor that a run will run, without data and without a step.

    Args:
        cfg: a composed config.
        seen: networks by what they depend on, kept from call to call: the points of a sweep mostly share them.
        asked: overrides of the command line.
        elsewhere: whether the run will be on another host, of which nothing is known here.

    Raises:
        ValueError, FileNotFoundError: what a constructor refuses.
    """
    check_settings(cfg, asked)
    if not elsewhere:
        check_processes(cfg)
    stages = planned_stages(cfg)
    # Folders of images tell their classes only when they are read.
    classes = getattr(instantiate(cfg.data), "num_classes", 10)
    with tempfile.TemporaryDirectory() as folder:
        for stage in stages:
            build_trainer(cfg, max_epochs=1, callbacks=build_callbacks(cfg, Path(folder), stage), logger=False)
    for stage in stages:
        key = OmegaConf.to_yaml(OmegaConf.create({"m": cfg.model, "q": cfg.quant if stage != FLOAT else None}))
        key = f"{stage} {classes} {key}"
        if key not in seen:
            seen[key] = build_network(cfg, build_net(cfg, classes), stage)
        if cfg.get("ptq"):
            methods_of(cfg, seen[key].names(), {})
        module = build_module(cfg, seen[key], stage, classes)
        if stage_settings(cfg, stage).epochs is not None:
            module.configure_optimizers()
