"""Methods without training from a config, and the run folder whose network they begin with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from bsq_lightning.cli.building.stage import FLOAT, has_float_weights
from bsq_lightning.cli.config import instantiate, read_config
from bsq_lightning.cli.trust import check_settled, check_targets, trusted_packages
from bsq_lightning.post_training import SWIS, PostTrainingMethod
from bsq_lightning.quantized_tensor import QuantizedTensor
from bsq_lightning.run_folder import RunFolder

#: What a run says of activations and of layers that stay float.
_KEPT = ("act_precision", "activation", "float_activations", "calibration_batches", "skip")


def begun_from(cfg: DictConfig, given: Sequence[str]) -> DictConfig:
    """The config with model, data and weights of the run folder that it names; as it is, where it has float weights.

    Args:
        cfg: the composed config.
        given: the overrides of the command line, which stand above the folder's settings.

    Raises:
        FileNotFoundError: no run folder, or no such checkpoint in it.
        ValueError: neither run nor weights, settings that the folder brings, a folder of what is quantized without
            training already, or what its config names is not trusted.
    """
    if cfg.images < 1:
        raise ValueError(f"images is a positive number of training images, not {cfg.images}")
    if cfg.preflight == "only":
        raise ValueError("ptq trains nothing, so there is nothing to check before it: leave preflight out")
    if cfg.quant.quantized_biases:
        raise ValueError("quant.quantized_biases: a bias has no output channels, which methods without training need")
    if cfg.run is None:
        if not has_float_weights(cfg):
            raise ValueError(
                "trained weights are quantized here: give run=FOLDER, or model.weights=FILE (a state dict, or the "
                "float.ckpt of a run folder) with model=... and data=..."
            )
        return cfg
    keys = [argument.lstrip("+~").partition("=")[0] for argument in given]
    if refused := [key for key in keys if key in ("model", "data", "experiment") or key.startswith("model.")]:
        raise ValueError(f"run=FOLDER brings its own model and data: leave {', '.join(refused)} out, or run=")
    folder = RunFolder.existing(cfg.run)
    source = read_config(folder.config)
    plain: Any = OmegaConf.to_container(source)
    check_settled(plain, folder.config)
    check_targets(plain, folder.config, trusted_packages(cfg.trust))
    if plain.get("ptq"):
        raise ValueError(f"{folder.path} is quantized without training already: take the run that it began with")
    weights = folder.last if cfg.stage is None or _is_newest(folder, cfg.stage) else folder.end_of(cfg.stage)
    if not weights.is_file():
        raise FileNotFoundError(f"{folder.path} has no checkpoint of {cfg.stage or 'any stage'}: there is no {weights}")
    settings: Any = OmegaConf.to_container(cfg)
    settings["run"] = str(folder.path)
    settings["model"] = {**plain["model"], "weights": str(weights)} | (
        {"pretrained": False} if "pretrained" in plain["model"] else {}
    )
    settings["data"] = {**plain["data"], **{k[5:]: OmegaConf.select(cfg, k) for k in keys if k.startswith("data.")}}
    if plain.get("quant"):
        of_run = {key: plain["quant"][key] for key in _KEPT if f"quant.{key}" not in keys and key in plain["quant"]}
        if cfg.stage == FLOAT:
            of_run.pop("act_precision", None)
        settings["quant"] |= of_run
    else:
        settings["quant"] |= {"skip": plain["model"].get("shortcuts") or [], "float_activations": []}
    return DictConfig(settings)


def _is_newest(folder: RunFolder, stage: str) -> bool:
    return not folder.end_of(stage).exists() and list(folder.results())[-1:] == [stage]


def methods_of(
    cfg: DictConfig, names: Sequence[str], codes: Mapping[str, QuantizedTensor]
) -> dict[str, PostTrainingMethod]:
    """By name of the layer, the method of its weight.

    Args:
        cfg: the settled config.
        names: of the quantized tensors.
        codes: what the weights are made of already; may lack any.

    Raises:
        ValueError: the constructor of a method refuses.
    """
    main = instantiate(cfg.ptq)
    ends = instantiate(cfg.first_last) or main
    chosen = {name: ends if name in (names[0], names[-1]) else main for name in names}
    return {name: _beginning_with(codes.get(name), method) for name, method in chosen.items()}


def _beginning_with(tensor: QuantizedTensor | None, method: PostTrainingMethod) -> PostTrainingMethod:
    """The method on codes that are there already: SWIS keeps them, and what has no bits gets none."""
    if tensor is None or (tensor.precision and not isinstance(method, SWIS)):
        return method

    def again(weight: Tensor, *, inputs: Tensor | None = None) -> QuantizedTensor:
        return method.share(tensor) if tensor.precision and isinstance(method, SWIS) else tensor

    return again


def source_of(cfg: DictConfig) -> tuple[RunFolder, Path] | None:
    """The run folder that a method without training began with, and its checkpoint; None where there was none."""
    return (RunFolder(Path(cfg.run)), Path(cfg.model.weights)) if cfg.get("run") else None
