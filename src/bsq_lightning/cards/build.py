"""A card from a network: what can be computed is computed, the config and the summary tell the rest."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from bsq_lightning.cards import measured
from bsq_lightning.cards.card import NOT_APPLICABLE, UNKNOWN, Card, told
from bsq_lightning.quantized_tensor import QuantizedState

_FLOAT_WEIGHTS = ("weights", "pretrained")


def build_card(
    net: nn.Module,
    state: QuantizedState,
    *,
    config: Mapping[str, Any] | None = None,
    summary: Mapping[str, Any] | None = None,
    origin: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a quantized network.

    Args:
        net: the network, its quantized parameters on their grid, its activation quantizers hooked in.
        state: the same as data; with MACs and bits of inputs, where they are to be on the card.
        config: the settled config of the run; without one the fields that only it tells are ``unknown``.
        summary: the content of ``summary.json``.
        origin: fields of ``generated_from``, ``fingerprint`` of the data, the keys ``swept``; what is missing is
            ``unknown``.

    Raises:
        ValueError: nothing is quantized, or a parameter of ``net`` is not what ``state`` says; the message names it.

    Example:
        >>> from bsq_lightning.network import QuantizedNetwork
        >>> from bsq_lightning.quantizers import LatentQuantizer
        >>> network = QuantizedNetwork(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), LatentQuantizer, precision=3)
        >>> card = build_card(network.net, network.state())
        >>> card["weights.bits_per_layer"], card["weights.sign"], card["layers.depthwise"]["quantized"]
        ({'0': 3, '1': 3}, 'beside the bits', 'n/a')
    """
    if not state.tensors:
        raise ValueError("nothing is quantized in this network, so it has no quantization card")
    config, summary, origin = config or {}, summary or {}, origin or {}
    quant, data = config.get("quant") or {}, summary.get("data") or {}
    scheme = state.scheme()
    sections: dict[str, dict[str, Any]] = {
        "generated_from": {
            key: origin.get(key, UNKNOWN)
            for key in (
                "checkpoint",
                "checkpoint_sha256",
                "quantized_sha256",
                "float_weights_sha256",
                "commit",
                "command",
            )  # fmt: skip
        }
        | {
            "seed": summary.get("seed", UNKNOWN),
            "versions": summary.get("versions", UNKNOWN),
            "date": origin.get("date", UNKNOWN),
        },
        "model": {
            "name": summary.get("model", type(net).__name__),
            "parameters": sum(parameter.numel() for parameter in net.parameters()),
            "float_weights": _float_weights(config),
            "float_accuracy": _accuracy(summary, "float"),
            "task": "image classification",
            "dataset": _dataset(data),
            "eval_images": data.get("test", UNKNOWN),
            "preprocessing": told(f"pixels normalized as {data['data']} does") if "data" in data else UNKNOWN,
        },
        "method": {
            "name": told(quant.get("method")),
            "kind": told(_kind(config)),
            "paper": told(quant.get("paper")),
            "mixed_precision": measured.mixed_precision(state),
        },
        "weights": {
            **measured.weights_of(state),
            "allowed_bitwidths": told(_allowed(config)),
            "range": told(_step_rule(config)),
            "rounding": told(_rounding(config)),
        },
        "activations": {
            **measured.activations_of(net, state, data.get("image_size")),
            "range": told(_range_rule(config)) if state.activations else NOT_APPLICABLE,
        },
        "layers": measured.layers_of(net, state),
        "batchnorm": {"folded": _folded(net, config), "re_estimated": _re_estimated(config)},
        "accumulation": {"worst_case_bits_per_layer": measured.accumulation_of(net, state) or NOT_APPLICABLE},
        "arithmetic": {"integer_only": "no: steps, batch norm and sums of branches are float"}
        | measured.arithmetic_of(state),
        "data": _data(config, summary, origin, ranges=bool(state.activations)),
        "compute": {
            "hours": round(sum(summary["seconds"].values()) / 3600, 4) if "seconds" in summary else UNKNOWN,
            "device": summary.get("device", UNKNOWN),
            "hyperparameters_swept": origin.get("swept", UNKNOWN),
            "split_of_sweeps": UNKNOWN,
        },
        "cost": measured.cost_of(scheme),
        "results": _results(summary),
        "deviations_from_paper": {"list": told(list(quant["deviations"])) if "deviations" in quant else UNKNOWN},
    }
    return Card(sections)


def _accuracy(summary: Mapping[str, Any], name: str) -> Any:
    row = (summary.get("accuracy") or {}).get(name) or {}
    return row.get("test/acc", UNKNOWN)


def _results(summary: Mapping[str, Any]) -> dict[str, Any]:
    final, before = _accuracy(summary, "final"), _accuracy(summary, "float")
    known = isinstance(final, float) and isinstance(before, float)
    return {
        "accuracy": final,
        "std": f"{NOT_APPLICABLE}: one seed",
        "seeds": 1,
        "delta_to_float": final - before if known else UNKNOWN,
        "val": summary.get("val", UNKNOWN),
        "checkpoint_selected_on": "last",
    }


def _data(
    config: Mapping[str, Any], summary: Mapping[str, Any], origin: Mapping[str, Any], ranges: bool
) -> dict[str, Any]:
    data, untrained = summary.get("data") or {}, bool(config.get("ptq"))
    epochs = summary.get("epochs", UNKNOWN)
    kind = "generated by the float network" if config.get("distill") else "real"
    own = f"that of {data['data']}" if "data" in data else None
    mixed = str((config.get("mix") or {}).get("_target_", "")).rpartition(".")[2]
    return {
        "calibration_images": told(_calibration(config, ranges)),
        "fingerprint": origin.get("fingerprint", UNKNOWN),
        "labelled": "no" if untrained else told("yes" if config else None),
        "labels": "none" if untrained else told(kind if config else None),
        "training_images": 0 if untrained else data.get("train", UNKNOWN),
        "epochs": epochs,
        "augmentation": "none" if untrained else told(" and ".join(x for x in (own, mixed) if x) or None),
    }


def _calibration(config: Mapping[str, Any], ranges: bool) -> int | None:
    """Images that fixed ranges of activations, where there are any, or that a method without training looked at."""
    batches = (config.get("quant") or {}).get("calibration_batches")
    size = (config.get("data") or {}).get("batch_size")
    if not isinstance(batches, int) or not isinstance(size, int):
        return None
    return max(batches * size if ranges else 0, config["images"] if config.get("ptq") else 0)


def _dataset(data: Mapping[str, Any]) -> str:
    if "data" not in data:
        return UNKNOWN
    return f"{data['data']}, {data.get('classes')} classes, {data.get('image_size')} pixels"


def _float_weights(config: Mapping[str, Any]) -> Any:
    model = config.get("model") or {}
    if not model:
        return UNKNOWN
    given = next((model[key] for key in _FLOAT_WEIGHTS if model.get(key)), None)
    return told("trained in this run" if given is None else str(given).rpartition("/")[2])  # folders are this machine's


def _kind(config: Mapping[str, Any]) -> str | None:
    return None if not config else "PTQ" if config.get("ptq") else "QAT"


def _allowed(config: Mapping[str, Any]) -> str | None:
    quant, knob = config.get("quant") or {}, str((config.get("quant") or {}).get("knob"))
    if knob.endswith((".precision", ".shifts")):
        return "fixed"
    stages = [stage for stage in (quant.get("stages") or {}).values() if isinstance(stage, Mapping)]
    bits = next((stage["allocator"].get("bits") for stage in stages if stage.get("allocator")), None)
    if bits:
        return f"{min(bits)} to {max(bits)}, whole"
    return f"0 to {quant.get('max_precision', 16)}, whole" if quant else None


def _step_rule(config: Mapping[str, Any]) -> str | None:
    """How steps are chosen, where the config says it."""
    parts = [config.get("ptq"), *reversed([each for each in (config.get("quant") or {}).values()])]
    return next((each["step"] for each in parts if isinstance(each, Mapping) and each.get("step")), None)


def _rounding(config: Mapping[str, Any]) -> str | None:
    kind = _kind(config)
    return None if kind is None else "nearest" if kind == "PTQ" else "nearest, of what training learned"


def _range_rule(config: Mapping[str, Any]) -> str | None:
    quant = config.get("quant") or {}
    rule = str((quant.get("activation") or {}).get("_target_", "")).rpartition(".")[2]
    return f"{rule}, largest of {quant.get('calibration_batches')} training batches" if rule else None


def _re_estimated(config: Mapping[str, Any]) -> Any:
    stages = (config.get("quant") or {}).get("stages") or {}
    batches = {name: (stage or {}).get("batch_norm_batches") for name, stage in stages.items()}
    asked = "; ".join(f"in stage {name}, on {number} batches" for name, number in batches.items() if number)
    return told(asked or "no") if config else UNKNOWN


def _folded(net: nn.Module, config: Mapping[str, Any]) -> str:
    norms = any(isinstance(module, measured.NORMS) for module in net.modules())
    if not config.get("fold"):
        return "no" if norms else f"{NOT_APPLICABLE}: the network has none"
    return "where it follows a convolution" if norms else "yes"
