"""Networks and modules from a config, so that train, evaluate and preflight build the same things."""

import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from bsq_lightning.cli.building.stage import FLOAT, has_float_weights, quantizer_of, stage_settings
from bsq_lightning.cli.config import instantiate
from bsq_lightning.models import load_float_weights
from bsq_lightning.models.distillation import Distillation
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.post_training import fold_batch_norm_
from bsq_lightning.scheme import Scheme

_NOT_ARGUMENTS = ("weights", "shortcuts", "float_activations")


def build_net(cfg: DictConfig, num_classes: int, with_weights: bool = True) -> nn.Module:
    """The plain float network, with its float weights where some are given; folded, where that is asked for."""
    model = _model(cfg)
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
    if cfg.get("fold"):
        fold_batch_norm_(net)
    return net


def architecture(cfg: DictConfig, num_classes: int) -> dict[str, Any]:
    """How the plain network is built: ``target``, its ``arguments``, and whether batch norms were folded after that."""
    arguments = {
        "num_classes": num_classes,
        **{key: value for key, value in _model(cfg).items() if key != "pretrained"},
    }
    return {"target": arguments.pop("_target_"), "arguments": arguments, "folded": bool(cfg.get("fold"))}


def _model(cfg: DictConfig) -> dict[str, Any]:
    model: Any = OmegaConf.to_container(cfg.model)
    return {key: value for key, value in model.items() if key not in _NOT_ARGUMENTS}


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
    quantizer, quant = quantizer_of(cfg, stage), cfg.quant
    if not quantizer:
        return QuantizedNetwork(net)
    if scheme is None and quant.scheme and not restored:
        scheme = Scheme.load(quant.scheme)
    network = QuantizedNetwork(
        net,
        weight=instantiate(quantizer),
        activation=instantiate(quant.activation),
        precision=quant.precision,
        precisions=scheme.whole_precisions() if scheme else None,
        first_last_precision=quant.first_last_precision,
        act_precision=quant.act_precision,
        skip=_present(quant.skip, cfg.model.get("shortcuts"), net),
        float_activations=_present(quant.float_activations, cfg.model.get("float_activations"), net),
        quantized_biases=quant.quantized_biases,
    )
    sizes = {layer.name: layer.size for layer in network.scheme().layers}
    for layer in scheme.layers if scheme else ():
        if layer.size != sizes[layer.name]:
            raise ValueError(
                f"{quant.scheme}: {layer.name} has {layer.size} weights there and {sizes[layer.name]} here"
            )
    return network


def first_network(cfg: DictConfig, stage: str, num_classes: int, restored: bool) -> QuantizedNetwork:
    """The network a run (or its continuation, whose checkpoint brings the weights) starts with."""
    network = build_network(cfg, build_net(cfg, num_classes, with_weights=not restored), stage, restored)
    return network if restored else _begun(cfg, network, stage)


def next_network(
    cfg: DictConfig, network: QuantizedNetwork, stage: str, num_classes: int, float_weights: Path | None
) -> QuantizedNetwork:
    """From the network of one stage to that of the next.

    Args:
        float_weights: checkpoint of this run's float stage, for a stage that goes back to it; where there is none (a
            trial), rewound weights are random unless the model comes with its own.
    """
    settings = stage_settings(cfg, stage)
    if not network.names():
        return _begun(cfg, build_network(cfg, network.net, stage), stage)
    if settings.rewind:
        net = build_net(cfg, num_classes)
        if not has_float_weights(cfg) and float_weights is not None:
            load_float_weights(net, float_weights)
        return _begun(cfg, build_network(cfg, net, stage, scheme=network.scheme()), stage)
    _begun(cfg, network, stage)
    if settings.quantizer:
        network.fix_scheme_(instantiate(settings.quantizer))
    return network


def _begun(cfg: DictConfig, network: QuantizedNetwork, stage: str) -> QuantizedNetwork:
    if at_start := stage_settings(cfg, stage).at_start:
        instantiate(at_start)(network)
    return network


def _present(patterns: Sequence[str], own: Sequence[str] | None, net: nn.Module) -> list[str]:
    """Leaves out the model config's own patterns that this variant lacks (a ResNet without convolution shortcuts)."""
    names = [name for name, _ in net.named_modules()]
    return [p for p in patterns if p not in (own or ()) or any(fnmatchcase(name, p) for name in names)]


def build_module(cfg: DictConfig, network: QuantizedNetwork, stage: str, num_classes: int) -> QuantModule:
    """The LightningModule of a stage."""
    settings = stage_settings(cfg, stage)
    regularizer = instantiate(settings.regularizer or (cfg.reg if settings.regularized else None))
    if regularizer is not None:
        regularizer.check({name: quantizer for name, _, quantizer in network.quantizers()})
    return QuantModule(
        network,
        num_classes=num_classes,
        optimizer=instantiate(settings.optimizer),
        scheduler=instantiate(settings.scheduler),
        regularizer=regularizer,
        after_step=instantiate(settings.after_step),
        mix=None if stage == FLOAT else instantiate(cfg.get("mix"), num_classes=num_classes),
        stage=stage,
        seed=cfg.seed,
    )


def build_distillation(
    cfg: DictConfig, stage: str, num_classes: int, float_weights: Path | None
) -> Distillation | None:
    """The float teacher of a stage, if the config has one: the network that the run quantizes, before that.

    Args:
        float_weights: checkpoint of this run's float stage; where there is none (a trial), the teacher is random
            unless the model comes with its own weights.
    """
    if not cfg.get("distill") or stage == FLOAT:
        return None
    net = build_net(cfg, num_classes)
    if not has_float_weights(cfg) and float_weights is not None:
        load_float_weights(net, float_weights)
    if cfg.get("channels_last"):
        net.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    return instantiate(cfg.distill, teacher=net)
