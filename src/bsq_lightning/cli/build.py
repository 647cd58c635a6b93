"""Objects from a config: one function for each, so that train, evaluate and preflight build the same things."""

import logging
import os
import shutil
import sys
import sysconfig
import tempfile
import warnings
from collections.abc import Sequence
from datetime import timedelta
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bsq_lightning.callbacks import AtomicCheckpointIO, RunRecorder
from bsq_lightning.cli.config import instantiate
from bsq_lightning.data import ImageDataModule
from bsq_lightning.models import load_float_weights
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.ranks import going_first
from bsq_lightning.scheme import Scheme

# Lightning announces devices and tips at every Trainer, twice under Hydra's logging; a run makes five of them.
for name in ("lightning.pytorch", "lightning.fabric"):
    logging.getLogger(name).setLevel(logging.WARNING)
warnings.filterwarnings(
    "ignore",
    message="(?s).*(does not have many workers|LeafSpec|exists and is not empty|smaller than the logging|"
    "`srun` command is available|broadcast_buffers. is deprecated|sync_dist=True)",
)

_NOT_ARGUMENTS = ("weights", "shortcuts", "float_activations")
_REFUSED_CALLBACKS = ("StochasticWeightAveraging", "WeightAveraging", "EMAWeightAveraging", "ModelPruning")


def build_net(cfg: DictConfig, num_classes: int, with_weights: bool = True) -> nn.Module:
    """The plain float network, with its float weights where some are given."""
    model = {key: value for key, value in cfg.model.items() if key not in _NOT_ARGUMENTS}
    weights = cfg.model.get("weights")
    # torchvision has names for its weights, DEFAULT or IMAGENET1K_V2; a file has a folder or an ending.
    named = with_weights and weights and model["_target_"].startswith("torchvision.") and str(weights).isidentifier()
    if named:
        model["weights"] = weights
    if "pretrained" in model:
        model["pretrained"] = model["pretrained"] and with_weights
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*init_weights.*")
        net = instantiate(
            OmegaConf.create(model), **({} if "num_classes" in model or named else {"num_classes": num_classes})
        )
    if with_weights and weights and not named:
        load_float_weights(net, weights)
    return net


def has_float_weights(cfg: DictConfig) -> bool:
    """Whether the model comes with float weights, so that no float stage is needed."""
    return bool(cfg.model.get("weights") or cfg.model.get("pretrained"))


def build_network(
    cfg: DictConfig, net: nn.Module, stage: str, restored: bool = False, scheme: Scheme | None = None
) -> QuantizedNetwork:
    """The network with the quantizers of a stage, started from the float weights in ``net``.

    With ``restored`` a checkpoint will bring weights and precisions, so no file of another run is read. ``scheme``
    gives the bits; without one they are the config's.
    """
    if cfg.get("channels_last"):
        # Of the weights only: what a convolution returns takes the layout of its weight, whatever that of the image.
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    quant = cfg.quant
    if stage == "float" or not quant:
        return QuantizedNetwork(net)
    if scheme is None and quant.scheme and not restored:
        scheme = Scheme.load(quant.scheme)
    network = QuantizedNetwork(
        net,
        weight=instantiate(quant.bits if stage == "bits" else quant.finetune),
        activation=instantiate(quant.activation),
        precision=quant.precision,
        precisions=scheme.precisions() if scheme else None,
        first_last_precision=quant.first_last_precision,
        act_precision=quant.act_precision,
        skip=_present(quant.skip, cfg.model.get("shortcuts"), net),
        float_activations=_present(quant.float_activations, cfg.model.get("float_activations"), net),
        quantized_biases=quant.quantized_biases,
        clamped=quant.clamped,
        clamp=quant.clamp[stage],
    )
    sizes = {layer.name: layer.size for layer in network.scheme().layers}
    for layer in scheme.layers if scheme else ():
        if layer.size != sizes[layer.name]:
            raise ValueError(
                f"{quant.scheme}: {layer.name} has {layer.size} weights there and {sizes[layer.name]} here"
            )
    return network


def _present(patterns: Sequence[str], own: Sequence[str] | None, net: nn.Module) -> list[str]:
    """Leaves out the model config's own patterns that this variant lacks (a ResNet without convolution shortcuts)."""
    names = [name for name, _ in net.named_modules()]
    return [p for p in patterns if p not in (own or ()) or any(fnmatchcase(name, p) for name in names)]


def planned_stages(cfg: DictConfig) -> list[str]:
    """The stages that this config runs, in order."""
    stages = [] if has_float_weights(cfg) else ["float"]
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
    if not {RunRecorder, ModelCheckpoint} <= {type(c) for c in callbacks}:
        raise ValueError(
            "callbacks.run_recorder and callbacks.checkpoint cannot be removed: a run could not be resumed"
        )
    refused = [type(c).__name__ for c in callbacks if type(c).__name__ in _REFUSED_CALLBACKS]
    if refused:
        raise ValueError(
            f"{refused[0]} writes weights of its own, which are not on any quantizer's grid: remove it from callbacks"
        )
    return callbacks


def device_count(cfg: DictConfig) -> int:
    """Processes of the run: devices on all hosts, ``auto`` and -1 counted."""
    devices, hosts = cfg.trainer.get("devices", 1), cfg.trainer.get("num_nodes", 1)
    if str(devices) == "1" and hosts == 1:
        return 1
    counted = L.Trainer(
        accelerator=cfg.trainer.accelerator, devices=devices, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        plugins=[LightningEnvironment()],  # what torchrun or SLURM have started is checked later
    )  # fmt: skip
    return counted.num_devices * hosts


def ddp() -> DDPStrategy:
    """DDP as ``trainer=ddp`` has it: batch norm's statistics are shared once an epoch instead of at every forward,
    which also lets ranks have unequal numbers of test batches; a lost host is noticed after ten minutes at most."""
    return DDPStrategy(broadcast_buffers=False, timeout=timedelta(minutes=10))


def build_trainer(cfg: DictConfig, **changes: Any) -> L.Trainer:
    """Lightning's Trainer; ``changes`` replace what the config says."""
    bar = cfg.trainer.enable_progress_bar and sys.stdout.isatty()
    strategy = cfg.trainer.get("strategy", "auto")
    if device_count(cfg) == 1:
        # DDP of one process would leave its process group and variables behind for the next job of a sweep.
        changes = {"strategy": "auto", **changes}
    elif isinstance(strategy, str) and strategy in ("auto", "ddp"):
        changes = {"strategy": ddp(), **changes}
    return instantiate(cfg.trainer, **{"plugins": [AtomicCheckpointIO()], "enable_progress_bar": bar, **changes})


def test_arithmetic(cfg: DictConfig) -> str:
    """Arithmetic of test and evaluate: float32 whatever trained (bf16 moves codes to their neighbours), or float64."""
    return "64-true" if str(cfg.trainer.precision) == "64-true" else "32-true"


def build_test_trainer(cfg: DictConfig) -> L.Trainer:
    """A Trainer for test and evaluate."""
    return build_trainer(
        cfg, precision=test_arithmetic(cfg), logger=False, enable_checkpointing=False, enable_progress_bar=False
    )


def build_datamodule(cfg: DictConfig) -> ImageDataModule:
    """The data, ready: downloaded if need be and set up."""
    datamodule = instantiate(cfg.data)
    # One process of each host downloads.
    with going_first(os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0")) == "0"):
        datamodule.prepare_data()
    datamodule.setup("fit")
    return datamodule


def check_settings(cfg: DictConfig) -> None:
    """Refuses what would train something else than what was asked.

    Raises:
        ValueError: arithmetic below 32 bits throughout, a strategy that splits parameters, or nothing to compile with.
    """
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
    if cfg.quant and cfg.quant.get("state_dtype"):
        if not cfg.quant.bits:
            raise ValueError("quant.state_dtype is that of bit planes, and this run trains none: leave it out")
        if precision.startswith("64"):
            raise ValueError("trainer.precision=64-true turns planes into float64: leave quant.state_dtype out")
    if cfg.preflight not in ("run", "only"):
        raise ValueError(f"preflight is run or only, not {cfg.preflight!r}")
    if cfg.get("scheme") and not (cfg.quant and cfg.quant.scheme):
        raise ValueError("scheme=FILE is used by quant=from_scheme only: add it, or leave scheme out")
    if cfg.quant and cfg.quant.act_precision is None and not cfg.quant.scheme:
        raise ValueError("quant=from_scheme needs scheme=FILE, the scheme.json of another run")
    if cfg.until not in (None, "float", "bits"):
        raise ValueError(f"until is null, float or bits, the last stage of this start, not {cfg.until!r}")
    if any(name in strategy.lower() for name in ("spawn", "fork", "notebook")):
        raise ValueError(
            f"trainer.strategy={strategy} trains in processes that give only weights back, into a network that has the "
            "precisions of before the training: use trainer=ddp"
        )
    if cfg.trainer.get("sync_batchnorm") and device_count(cfg) > 1 and cfg.trainer.accelerator == "cpu":
        raise ValueError("trainer.sync_batchnorm works on GPUs only: leave it out")
    for limit in ("limit_val_batches", "limit_test_batches"):
        if cfg.trainer.get(limit) == 0:
            raise ValueError(
                f"trainer.{limit}=0 leaves nothing to report: data.val_split=0 does without validation images"
            )
    if any(name in strategy.lower() for name in ("fsdp", "deepspeed", "model_parallel")):
        raise ValueError(
            f"trainer.strategy={strategy} splits parameters between devices, and the planes of a weight with them; "
            "not supported yet: use ddp"
        )


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


def check_constructors(cfg: DictConfig, seen: dict[str, Any]) -> None:
    """Runs every constructor that a run will run, without data and without a step.

    Args:
        cfg: a composed config.
        seen: networks by what they depend on, kept from call to call: the points of a sweep mostly share them.

    Raises:
        ValueError, FileNotFoundError: what a constructor refuses.
    """
    check_settings(cfg)
    stages = planned_stages(cfg)
    # Folders of images tell their classes only when they are read.
    classes = getattr(instantiate(cfg.data), "num_classes", 10)
    with tempfile.TemporaryDirectory() as folder:
        build_trainer(cfg, max_epochs=1, callbacks=build_callbacks(cfg, Path(folder)), logger=False)
    for stage in stages:
        key = OmegaConf.to_yaml(OmegaConf.create({"m": cfg.model, "q": cfg.quant if stage != "float" else None}))
        key = f"{stage} {classes} {key}"
        if key not in seen:
            seen[key] = build_network(cfg, build_net(cfg, classes), stage)
        build_module(cfg, seen[key], stage, classes).configure_optimizers()


def load_state(module: QuantModule, checkpoint: dict[str, Any], path: Path) -> None:
    """Loads a checkpoint into a module.

    Raises:
        ValueError: it is from another architecture; lists the first keys that differ. Or no run has written it.
    """
    try:
        module.load_state_dict(checkpoint["state_dict"])
    except RuntimeError as error:
        lines = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ValueError(f"{path} is from another architecture than the config: {lines[:400]}") from error
    except ValueError as error:
        raise ValueError(f"{path} was not written by a run and is not used: {error}") from error
