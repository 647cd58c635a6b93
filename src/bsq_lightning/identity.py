"""Which settings make two runs the same: one list for resume, shared float stages, sweeps and reports (standard
library only). It also reads the configs of earlier versions as today's."""

from collections.abc import Mapping
from typing import Any

#: What may change between two starts of one run: where data lies, devices and how they compute, loggers, and what only
#: a search or a card asks.
FREE = (
    "data.root", "data.download", "data.num_workers", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
    "trainer.strategy", "trainer.enable_progress_bar", "logger", "preflight", "until", "float_stage", "objective",
    "callbacks.preemption", "callbacks.rank_agreement", "compile", "channels_last", "trust", "oversubscribe",
    "quant.knob_grows", "quant.paper", "quant.deviations",
)  # fmt: skip
#: What repeats of one run differ in, beside that: they are averaged in reports.
REPEATED = ("seed", "data.seed", "trainer.log_every_n_steps")
#: What the float stage does not depend on, beside stages behind it: runs that agree in all else can share one.
AFTER_FLOAT = (
    "quant", "reg", "mix", "distill", "freeze", "average", "scheme", "model.shortcuts", "model.float_activations",
    "callbacks.precision_adjustment", "callbacks.range_calibration",
)  # fmt: skip
#: Keys of a bit-plane method that other methods' configs had in earlier versions, without meaning.
_OF_PLANES = ("max_precision", "rewind", "state_dtype", "bits")


def is_free(key: str) -> bool:
    """Whether two starts of one run may differ in this dotted key.

    Example:
        >>> is_free("trainer.strategy.timeout"), is_free("trainer.precision")
        (True, False)
    """
    return _under(key, FREE)


def is_repeat(key: str) -> bool:
    """Whether runs that differ in this dotted key alone are repeats of one another."""
    place = key.startswith("callbacks.") and key.endswith((".folder", ".dirpath"))
    return is_free(key) or _under(key, REPEATED) or place


def before_float(key: str) -> bool:
    """Whether the float stage depends on this dotted key."""
    behind = key.startswith("stages.") and not key.startswith("stages.float.")
    return not (is_free(key) or _under(key, AFTER_FLOAT) or behind)


def flat(node: Any, prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries as dotted keys.

    Example:
        >>> flat({"a": {"b": 1, "c": {}}})
        {'a.b': 1, 'a.c': None}
    """
    if isinstance(node, dict) and node:
        return {k: v for key, value in node.items() for k, v in flat(value, f"{prefix}{key}.").items()}
    return {prefix.removesuffix("."): None if node == {} else node}


def differences(asked: Mapping[str, Any], kept: Mapping[str, Any]) -> list[str]:
    """Where two flat configs differ, in words. What one lacks and the other has switched off is no difference."""
    return [
        f"{key}: {kept.get(key, 'absent')} there, {asked.get(key, 'absent')} now"
        for key in sorted(kept.keys() | asked.keys())
        if kept.get(key) != asked.get(key)
    ]


def upgraded(config: dict[str, Any]) -> dict[str, Any]:
    """The resolved config of a run of version 0.1, in which the stages were fixed, as today's version has it.

    Example:
        >>> old = {"quant": {"bits": {"_target_": "x.BitPlaneQuantizer"}, "finetune": {"_target_": "y"}}, "stages": {}}
        >>> new = upgraded(old)["quant"]
        >>> new["method"], new["knob"], list(new["stages"])
        ('bit planes', 'reg.alpha', ['bits', 'finetune'])
    """
    quant = config.get("quant")
    if not isinstance(quant, dict) or not quant:
        return {**config, "callbacks": _without_interval(config)} if "callbacks" in config else config
    if "stages" in quant:
        return config
    quant = dict(quant)
    clamped, bounds = quant.pop("clamped", None), quant.pop("clamp", None)
    lose = quant.pop("lose_biases", False)
    planes = isinstance(quant.get("bits"), dict)
    method = _method(quant, config)
    bits: dict[str, Any] = {"regularized": True, "batch_norm_batches": None if clamped else 10}
    finetune: dict[str, Any] = {"rewind": bool(quant.get("rewind"))} if planes else {}
    if clamped:
        for stage, name in ((bits, "bits"), (finetune, "finetune")):
            low, high = bounds[name]
            target = "bsq_lightning.reference_2021.ClampFloats"
            stage["after_step"] = {"_target_": target, "patterns": clamped, "low": low, "high": high}
    if lose:
        finetune["at_start"] = {"_target_": "bsq_lightning.reference_2021.lose_biases", "_partial_": True}
    if not planes:
        quant = {key: value for key, value in quant.items() if key not in _OF_PLANES}
    stages = {"bits": bits} if planes else {}
    uniform = method == "uniform"
    knob = "quant.precision" if uniform else "reg.alpha" if planes else None
    quant |= {"method": method, "knob": knob, "baseline": uniform, "stages": {**stages, "finetune": finetune}}
    return {**config, "quant": quant, "callbacks": _without_interval(config)}


def _method(quant: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    bits = quant.get("bits")
    if isinstance(bits, dict):
        name = str(bits.get("_target_", "")).rsplit(".", 1)[-1]
        if name != "BitPlaneQuantizer":
            return name.removesuffix("Quantizer") or "quantized"
        return "bit planes" + (" as in 2021" if bits.get("clip_always") else ", rewound" if quant.get("rewind") else "")
    return "from scheme" if quant.get("scheme") or config.get("scheme") else "uniform"


def _without_interval(config: Mapping[str, Any]) -> Any:
    """The callbacks, without an interval of adjustments that is only the stage's own."""
    callbacks: Any = config.get("callbacks")
    adjustment = callbacks.get("precision_adjustment") if isinstance(callbacks, dict) else None
    stages = config.get("stages")
    own = stages.get("bits") if isinstance(stages, dict) else None
    if not isinstance(adjustment, dict) or not isinstance(own, dict):
        return callbacks
    if adjustment.get("every_n_epochs") != own.get("adjust_every_n_epochs"):
        return callbacks
    return {**callbacks, "precision_adjustment": {**adjustment, "every_n_epochs": None}}


def _under(key: str, keys: tuple[str, ...]) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in keys)
