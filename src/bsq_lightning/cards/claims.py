"""What a run says of itself, held against its weights. A disagreement is an error that names the field of the card."""

import math
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from bsq_lightning.cards.measured import granularity
from bsq_lightning.quantized_tensor import QuantizedState, QuantizedTensor, Shifts
from bsq_lightning.scheme import Scheme


def hold_same_network(state: QuantizedState, checkpoint: QuantizedState) -> None:
    """Raises ValueError, naming the tensor, where a file of codes and a checkpoint are not the same network.

    Args:
        state: what ``quantized.safetensors`` holds.
        checkpoint: the same of the network of the checkpoint.
    """
    if state.tensors.keys() != checkpoint.tensors.keys():
        other = sorted(state.tensors.keys() ^ checkpoint.tensors.keys())[0]
        raise ValueError(f"weights: {other} is quantized in one of quantized.safetensors and the checkpoint only")
    for name, tensor in state.tensors.items():
        other = checkpoint.tensors[name]
        if tensor.precision != other.precision:
            raise ValueError(
                f"weights.bits_per_layer: {name} has {tensor.precision} bits in quantized.safetensors and "
                f"{other.precision} in the checkpoint"
            )
        if tensor.codes.shape != other.codes.shape or not torch.equal(tensor.dequantize(), other.dequantize().cpu()):
            raise ValueError(
                f"weights: those of {name} differ between quantized.safetensors and the checkpoint: one of the two "
                "was changed after the run"
            )
    if state.activations != checkpoint.activations:
        raise ValueError("activations: bits, clips or ranges differ between quantized.safetensors and the checkpoint")


def hold_against_config(state: QuantizedState, config: Mapping[str, Any]) -> None:
    """Raises ValueError, naming field and key, where weights or activations are not what the config says.

    Args:
        state: the quantized network.
        config: the settled config of its run.
    """
    for field, key, found, said in _disagreements(state, config):
        raise ValueError(f"{field}: {found} by the weights, but the config says {key}={said}")


def hold_against_summary(state: QuantizedState, summary: Mapping[str, Any], scheme_file: Path) -> None:
    """Raises ValueError where ``summary.json`` or ``scheme.json`` have other bits or sizes than the weights."""
    scheme = state.scheme()
    if "sizes" in summary and summary["sizes"] != scheme.sizes():
        raise ValueError("cost.weight_bits: summary.json has other sizes than the weights in quantized.safetensors")
    if "scheme" in summary and summary["scheme"] != scheme.precisions():
        raise ValueError("weights.bits_per_layer: summary.json has other bits than quantized.safetensors")
    if scheme_file.exists() and Scheme.load(scheme_file).precisions() != scheme.precisions():
        raise ValueError("weights.bits_per_layer: scheme.json has other bits than quantized.safetensors")


def _disagreements(state: QuantizedState, config: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    quant, ptq = config.get("quant") or {}, config.get("ptq") or {}
    names = [name for name in state.tensors if not name.endswith(".bias")]
    ends = {names[0], names[-1]}
    for name, tensor in state.tensors.items():
        for key, said in _bits_said(config, name in ends):
            if tensor.precision not in (said, 0):
                yield "weights.bits_per_layer", key, f"{name} has {tensor.precision} bits", said
        most = quant.get("max_precision")
        if isinstance(most, int) and tensor.precision > most:
            yield "weights.allowed_bitwidths", "quant.max_precision", f"{name} has {tensor.precision} bits", most
        if name in names and any(fnmatchcase(name, pattern) for pattern in quant.get("skip") or ()):
            yield "layers.float_layers", "quant.skip", f"{name} is quantized", list(quant["skip"])
        per_channel = ptq.get("per_channel")
        of_method = name not in ends or not config.get("first_last")
        if isinstance(per_channel, bool) and of_method and (granularity(tensor) != "tensor") != per_channel:
            if tensor.precision:
                yield (
                    "weights.granularity",
                    "ptq.per_channel",
                    f"{name} has a step for each {granularity(tensor)}",
                    (per_channel),
                )
        if of_method:
            yield from _shifts(name, tensor, *(("ptq", ptq) if "shifts" in ptq else ("quant", quant)))
    biases = any(name.endswith(".bias") for name in state.tensors)
    if biases != bool(quant.get("quantized_biases")) and quant:
        found = "biases are quantized" if biases else "no bias is quantized"
        yield "layers.biases", "quant.quantized_biases", found, quant.get("quantized_biases")
    mean, said = state.scheme().mean_precision, quant.get("mean_bits")
    if isinstance(said, (int, float)) and mean > said + 1e-9:
        yield "weights.bits_mean_param_weighted", "quant.mean_bits", f"{mean:.4f} bits", said
    yield from _activations(state, quant)


def _bits_said(config: Mapping[str, Any], is_end: bool) -> Iterator[tuple[str, Any]]:
    """The bits that a layer has by the config, where its method keeps those it is given."""
    quant = config.get("quant") or {}
    if quant.get("knob") == "ptq.precision" and not (is_end and config.get("first_last")):
        yield "ptq.precision", config["ptq"]["precision"]
    if quant.get("knob") == "quant.precision" and not quant.get("scheme"):
        other = quant.get("first_last_precision") if is_end else None
        yield ("quant.precision", quant["precision"]) if other is None else ("quant.first_last_precision", other)


def _shifts(
    name: str, tensor: QuantizedTensor, where: str, method: Mapping[str, Any]
) -> Iterator[tuple[str, str, Any, Any]]:
    """``method`` is the part of the config that describes it, called ``where``."""
    if not isinstance(tensor.extra, Shifts) or "shifts" not in method:
        return
    said = method["shifts"]
    mean, most = float(tensor.extra.number.double().mean()), math.ceil(said)
    if mean > most or (method.get("schedule") != "greedy" and mean != min(most, tensor.precision)):
        yield "arithmetic.shifts_per_weight", f"{where}.shifts", f"{name} has {mean:g} shifts", said
    for key in ("group", "consecutive"):
        found = getattr(tensor.extra, key)
        if found != method.get(key, found):
            yield "arithmetic.special_hardware", f"{where}.{key}", f"{name} has {key} {found}", method[key]


def _activations(state: QuantizedState, quant: Mapping[str, Any]) -> Iterator[tuple[str, str, Any, Any]]:
    said = quant.get("act_precision") if quant.get("activation") else None
    for site in state.activations:
        if said is not None and site.bits != said:
            yield "activations.bits", "quant.act_precision", f"{site.site} has {site.bits} bits", said
    if said is not None and bool(said) != bool(state.activations):
        yield "activations.bits", "quant.act_precision", f"{len(state.activations)} activations are quantized", said
    if quant.get("calibration_batches") and any(not site.range for site in state.activations):
        unset = next(site.site for site in state.activations if not site.range)
        batches = quant["calibration_batches"]
        yield "activations.static", "quant.calibration_batches", f"{unset} has no fixed range", batches
