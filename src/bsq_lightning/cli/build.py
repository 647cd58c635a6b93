"""Objects from a config: one function for each, so that train, evaluate and preflight build the same things."""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bsq_lightning.callbacks import AtomicCheckpointIO
from bsq_lightning.cli.config import instantiate
from bsq_lightning.data import ImageDataModule
from bsq_lightning.models import load_float_weights
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.scheme import Scheme

# Lightning announces devices and tips at every Trainer, twice under Hydra's logging; a run makes five of them.
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
warnings.filterwarnings(
    "ignore", message="(?s).*(does not have many workers|LeafSpec|exists and is not empty|smaller than the logging)"
)

_NOT_ARGUMENTS = ("weights", "shortcuts", "float_activations")
_REFUSED_CALLBACKS = ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging", "ModelPruning")


def build_net(cfg: DictConfig, num_classes: int, with_weights: bool = True) -> nn.Module:
    """The plain float network, with its float weights where some are given."""
    model = {key: value for key, value in cfg.model.items() if key not in _NOT_ARGUMENTS}
    weights = cfg.model.get("weights")
    named = with_weights and weights and model["_target_"].startswith("torchvision.") and not Path(weights).exists()
    if named:
        model["weights"] = weights
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*init_weights.*")
        net = instantiate(
            OmegaConf.create(model), **({} if "num_classes" in model or named else {"num_classes": num_classes})
        )
    if with_weights and weights and not named:
        load_float_weights(net, weights)
    return net


def build_network(cfg: DictConfig, net: nn.Module, stage: str) -> QuantizedNetwork:
    """The network with the quantizers of a stage, started from the float weights in ``net``."""
    quant = cfg.quant
    if stage == "float" or not quant:
        return QuantizedNetwork(net)
    return QuantizedNetwork(
        net,
        weight=instantiate(quant.bits if stage == "bits" else quant.finetune),
        activation=instantiate(quant.activation),
        precision=quant.precision,
        precisions=Scheme.load(quant.scheme).precisions() if quant.get("scheme") else None,
        first_last_precision=quant.first_last_precision,
        act_precision=quant.act_precision,
        skip=quant.skip,
        float_activations=quant.float_activations,
        quantized_biases=quant.quantized_biases,
        clamped=quant.clamped,
        clamp=quant.clamp[stage],
    )


def planned_stages(cfg: DictConfig) -> list[str]:
    """The stages that this config runs, in order."""
    stages = [] if cfg.model.get("weights") else ["float"]
    if cfg.quant:
        stages += ["bits"] if cfg.quant.bits else []
        stages += ["finetune"]
    planned = [stage for stage in stages if cfg.stages[stage].epochs > 0]
    if not planned:
        raise ValueError(
            "nothing to do: no stage has epochs (model.weights skips the float stage, quant=none the other two)"
        )
    return planned


def build_module(cfg: DictConfig, network: QuantizedNetwork, stage: str, num_classes: int) -> QuantModule:
    """The LightningModule of a stage."""
    settings = cfg.stages[stage]
    regularizer = instantiate(cfg.reg) if stage == "bits" else None
    if regularizer is not None:
        regularizer.check({name: quantizer for name, _, quantizer in network.quantizers()})
    return QuantModule(
        network,
        num_classes=num_classes,
        optimizer=instantiate(settings.optimizer),
        scheduler=instantiate(settings.scheduler),
        regularizer=regularizer,
        stage=stage,
        seed=cfg.seed,
    )


def build_callbacks(cfg: DictConfig, folder: Path) -> list[L.Callback]:
    """The callbacks in the order of the config, which is their meaning; ``folder`` goes to those that write."""
    callbacks = []
    for config in cfg.callbacks.values():
        if not config:
            continue
        written = {key: str(folder) for key in ("folder",) if key in config}
        written |= {"dirpath": str(folder / "checkpoints")} if "dirpath" in config else {}
        callbacks.append(instantiate(config, **written))
    refused = [type(c).__name__ for c in callbacks if type(c).__name__ in _REFUSED_CALLBACKS]
    if refused:
        raise ValueError(
            f"{refused[0]} writes weights of its own, which are not on any quantizer's grid: remove it from callbacks"
        )
    return callbacks


def build_trainer(cfg: DictConfig, **changes: Any) -> L.Trainer:
    """Lightning's Trainer; ``changes`` replace what the config says."""
    bar = cfg.trainer.enable_progress_bar and sys.stdout.isatty()
    return instantiate(cfg.trainer, **{"plugins": [AtomicCheckpointIO()], "enable_progress_bar": bar, **changes})


def build_test_trainer(cfg: DictConfig) -> L.Trainer:
    """A Trainer for test and evaluate: float32, whatever arithmetic trained (bf16 moves codes to their neighbours)."""
    return build_trainer(cfg, precision="32-true", logger=False, enable_checkpointing=False, enable_progress_bar=False)


def build_logger(cfg: DictConfig, folder: Path) -> Any:
    """Loggers next to the run folder's own files, or False."""
    loggers = [
        instantiate(config, **({"save_dir": str(folder)} if "save_dir" in config else {}))
        for config in (cfg.logger or {}).values()
        if config
    ]
    return loggers or False


def build_datamodule(cfg: DictConfig) -> ImageDataModule:
    """The data, ready: downloaded if need be and set up."""
    datamodule = instantiate(cfg.data)
    datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def check_settings(cfg: DictConfig) -> None:
    """Refuses what would train something else than what was asked.

    Raises:
        ValueError: arithmetic below 32 bits throughout, or a strategy that splits parameters.
    """
    precision, strategy = str(cfg.trainer.get("precision", "32-true")), str(cfg.trainer.get("strategy", "auto"))
    if precision.endswith("-true") and not precision.startswith(("32", "64")) or precision in ("transformer-engine",):
        raise ValueError(
            f"trainer.precision={precision} turns planes and latents into {precision.split('-')[0]}, silently: "
            "use bf16-mixed or 16-mixed, which keep them in 32 bits"
        )
    if any(name in strategy.lower() for name in ("fsdp", "deepspeed", "model_parallel")):
        raise ValueError(
            f"trainer.strategy={strategy} splits parameters between devices, and the planes of a weight with them; "
            "not supported yet: use ddp"
        )
