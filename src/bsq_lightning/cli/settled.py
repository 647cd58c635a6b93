"""The settled config of a run folder: resolved once, compared at every later start in the same folder."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bsq_lightning.cli.config import read_config
from bsq_lightning.files import write_whole
from bsq_lightning.identity import before_float, differences, flat, is_free
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme


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
    for key in ("data.root", "model.weights", "scheme", "quant.scheme", "float_stage", "run"):
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
    return {key: value for key, value in flat(OmegaConf.to_container(settled)).items() if before_float(key)}


def check_same(asked: DictConfig, kept: Any, folder: RunFolder) -> None:
    """Raises ValueError, with the differences, where a settled config is another run than the folder's."""
    new, old = (
        {key: value for key, value in flat(OmegaConf.to_container(config)).items() if not is_free(key)}
        for config in (asked, kept)
    )
    if found := differences(new, old):  # a setting that is newer than the run, and off, is no difference
        raise ValueError(
            f"{folder.path} holds a run with another config, which would be continued under a false name. "
            f"Choose another folder; they differ in: {'; '.join(found)}"
        )
