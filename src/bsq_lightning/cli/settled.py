"""The settled config of a run folder: resolved once, compared at every later start in the same folder."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bsq_lightning.cli.config import read_config
from bsq_lightning.files import write_whole
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme

#: What may change between two starts of one run: paths, devices and how they compute, loggers. Everything else is
#: what the run is.
FREE = (
    "data.root", "data.download", "data.num_workers", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.enable_progress_bar", "logger", "preflight", "until", "float_stage",
    "callbacks.preemption", "callbacks.rank_agreement", "compile", "channels_last", "trust",
)  # fmt: skip
#: What the float stage does not depend on; runs that agree in all else can share one.
AFTER_FLOAT = (
    "quant", "reg", "scheme", "stages.bits", "stages.finetune", "model.shortcuts", "model.float_activations",
    "callbacks.precision_adjustment", "callbacks.range_calibration", *FREE,
)  # fmt: skip


def settle(cfg: DictConfig, folder: RunFolder) -> DictConfig:
    """Resolves a config, with absolute paths, and keeps it as the folder's ``config.yaml``.

    Raises:
        ValueError: a run with another config was started in this folder; lists the differences.
    """
    kept = read_config(folder.config) if folder.config.exists() else None
    settled = settled_config(cfg, kept)
    if kept is not None:
        check_same(settled, kept, folder)
    elif cfg.preflight != "only" and folder.writer:
        # Where this start stops is not what the run is: a later start goes on.
        write_whole(folder.config, OmegaConf.to_yaml(OmegaConf.merge(settled, {"until": None})))
    return settled


def settled_config(cfg: DictConfig, kept: Any = None) -> DictConfig:
    """The config resolved, with absolute paths; ``kept`` is what the run folder has, if it was started before."""
    settled = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    assert isinstance(settled, DictConfig)
    for key in ("data.root", "model.weights", "scheme", "quant.scheme", "float_stage"):
        path = OmegaConf.select(settled, key)
        if path and (key != "model.weights" or not str(path).isidentifier()):
            OmegaConf.update(settled, key, str(Path(path).expanduser().absolute()))
    if settled.quant and settled.quant.act_precision is None:
        settled.quant.act_precision = (
            Scheme.load(settled.quant.scheme).act_precision
            if kept is None
            else OmegaConf.select(kept, "quant.act_precision")  # the scheme's file may be gone by now
        )
    return settled


def float_part(settled: Any) -> dict[str, Any]:
    """The settings that the float stage depends on, flat."""
    return _without(_flat(OmegaConf.to_container(settled)), AFTER_FLOAT)


def differences(asked: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """Where two flat configs differ, in words."""
    return [
        f"{key}: {kept.get(key, 'absent')} there, {asked.get(key, 'absent')} now"
        for key in sorted(kept.keys() | asked.keys())
        if kept.get(key) != asked.get(key)
    ]


def check_same(asked: DictConfig, kept: Any, folder: RunFolder) -> None:
    """Raises ValueError, with the differences, where a settled config is another run than the folder's."""
    new, old = (_without(_flat(OmegaConf.to_container(config)), FREE) for config in (asked, kept))
    if found := differences(new, old):  # a setting that is newer than the run, and off, is no difference
        raise ValueError(
            f"{folder.path} holds a run with another config, which would be continued under a false name. "
            f"Choose another folder; they differ in: {'; '.join(found)}"
        )


def _without(flat: dict[str, Any], left_out: tuple[str, ...]) -> dict[str, Any]:
    return {k: v for k, v in flat.items() if not any(k == key or k.startswith(f"{key}.") for key in left_out)}


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): None if node == {} else node}
