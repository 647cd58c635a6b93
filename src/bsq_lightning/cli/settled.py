"""The settled config of a run folder: resolved once, compared at every later start in the same folder."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from bsq_lightning.files import write_whole
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme

#: What may change between two starts of one run: paths, devices and loggers. Everything else is what the run is.
FREE = (
    "data.root", "data.download", "data.num_workers", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.enable_progress_bar", "logger", "preflight",
)  # fmt: skip


def settle(cfg: DictConfig, folder: RunFolder) -> DictConfig:
    """Resolves a config, with absolute paths, and keeps it as the folder's ``config.yaml``.

    Raises:
        ValueError: a run with another config was started in this folder; lists the differences.
    """
    settled = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True))
    assert isinstance(settled, DictConfig)
    for key in ("data.root", "model.weights", "scheme", "quant.scheme"):
        path = OmegaConf.select(settled, key)
        if path and (key != "model.weights" or not str(path).isidentifier()):
            OmegaConf.update(settled, key, str(Path(path).expanduser().absolute()))
    kept = OmegaConf.load(folder.config) if folder.config.exists() else None
    if settled.quant and settled.quant.act_precision is None:
        settled.quant.act_precision = (
            Scheme.load(settled.quant.scheme).act_precision
            if kept is None
            else OmegaConf.select(kept, "quant.act_precision")  # the scheme's file may be gone by now
        )
    if kept is not None:
        _check_same(settled, kept, folder)
    elif cfg.preflight != "only":
        write_whole(folder.config, OmegaConf.to_yaml(settled))
    return settled


def _check_same(asked: DictConfig, kept: Any, folder: RunFolder) -> None:
    new, old = _flat(OmegaConf.to_container(asked)), _flat(OmegaConf.to_container(kept))
    differences = [
        f"{key}: {old.get(key, 'absent')} there, {new.get(key, 'absent')} now"
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key) and not any(key == free or key.startswith(f"{free}.") for free in FREE)
    ]
    if differences:
        raise ValueError(
            f"{folder.path} holds a run with another config, which would be continued under a false name. "
            f"Choose another folder; they differ in: {'; '.join(differences)}"
        )


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in _flat(value, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): None if node == {} else node}
