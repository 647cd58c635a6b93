"""What a run was asked to do, read from its config: which front it belongs to, and which runs repeat it."""

import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeGuard

import yaml

from bsq_lightning.identity import flat, is_repeat, upgraded


@dataclass(frozen=True)
class Setting:
    """What is compared between runs. ``flat`` is the config without seeds and places, as dotted keys."""

    model: str
    data: str
    method: str
    knob: str | None
    knob_value: float | None
    baseline: bool
    precision: int | None
    first_last: int | None
    act_precision: int | None
    seed: int | None
    epochs: dict[str, int]
    flat: dict[str, str]

    @cached_property
    def key(self) -> str:
        """Equal for runs that differ only by their seed."""
        return json.dumps(sorted(self.flat.items()))

    @cached_property
    def curve(self) -> str:
        """Equal for runs that differ only by seed and by the one knob of their method."""
        return json.dumps(sorted(self.without_knob().items()))

    def without_knob(self) -> dict[str, str]:
        """``flat`` without the knob, and without the keys that repeat it (a stage's part that is given its value)."""
        if self.knob not in self.flat:
            return self.flat
        name, value = self.knob.rpartition(".")[2], self.flat[self.knob]
        return {k: v for k, v in self.flat.items() if k.rpartition(".")[2] != name or v != value}

    @property
    def alpha(self) -> float | None:
        """Strength of the regularizer, where that is the knob."""
        return self.knob_value if self.knob == "reg.alpha" else None

    @property
    def turned(self) -> str:
        """The knob with its value, in words; empty without one."""
        if self.knob is None or self.knob_value is None:
            return ""
        if self.knob == "quant.precision":
            ends = f", first and last {self.first_last}" if self.first_last else ""
            return f"{self.knob_value:g} {'bit' if self.knob_value == 1 else 'bits'}{ends}"
        return f"{self.knob.rpartition('.')[2]} {self.knob_value:g}"

    @property
    def label(self) -> str:
        """Method and knob, in words."""
        return ", ".join(filter(None, (self.method, self.turned)))


def read_setting(path: Path) -> Setting:
    """Reads the ``config.yaml`` of a run folder; nothing in it is executed.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is no YAML, or no config of a run.
    """
    if not path.is_file():
        raise FileNotFoundError("it has no config.yaml")
    try:
        config = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"its config.yaml cannot be read ({' '.join(str(error).split())})") from error
    parts = [config.get(name) for name in ("model", "data", "stages")] if isinstance(config, dict) else []
    if not parts or not all(isinstance(part, dict) for part in parts) or "_target_" not in config["model"]:
        raise ValueError("its config.yaml is not that of a run: it lacks model, data or stages")
    try:
        return setting_of(config)
    except RecursionError as error:
        raise ValueError("its config.yaml is nested too deeply") from error


def setting_of(config: dict[str, Any]) -> Setting:
    """The setting in a resolved config.

    Example:
        >>> config = {"model": {"_target_": "bsq_lightning.models.resnet20"}, "seed": 3,
        ...     "data": {"_target_": "bsq_lightning.data.CIFAR10DataModule"}, "stages": {"bits": {"epochs": 350}},
        ...     "quant": {"bits": {"_target_": "bsq_lightning.quantizers.BitPlaneQuantizer"}}, "reg": {"alpha": 5e-3}}
        >>> setting = setting_of(config)
        >>> setting.model, setting.data, setting.label, setting.seed
        ('ResNet-20', 'CIFAR-10', 'bit planes, alpha 0.005', 3)
    """
    config = upgraded(config)
    quant = _part(config, "quant")
    # What one run lacks, of a version before the key, and another has switched off is no difference.
    kept = {key: value for key, value in flat(config).items() if value is not None and not is_repeat(key)}
    texts = {key: value if isinstance(value, str) else json.dumps(value, default=str) for key, value in kept.items()}
    if "model.weights" in texts:
        texts["model.weights"] = Path(texts["model.weights"]).name
    knob = quant.get("knob") if isinstance(quant.get("knob"), str) else None
    return Setting(
        model=_model(config["model"]),
        data=_data(config["data"]),
        method=str(quant.get("method", "quantized")) if quant else "float",
        knob=knob,
        knob_value=_number(_at(config, knob), float) if knob else None,
        baseline=quant.get("baseline") is True,
        precision=_number(quant.get("precision"), int),
        first_last=_number(quant.get("first_last_precision"), int),
        act_precision=_number(quant.get("act_precision"), int),
        seed=_number(config.get("seed"), int),
        epochs={
            str(stage): int(part["epochs"])
            for stage, part in config["stages"].items()
            if isinstance(part, dict) and isinstance(part.get("epochs"), int)
        },
        flat=texts,
    )


def differences(settings: list[dict[str, str]], most: int = 3) -> list[str]:
    """For each flat config, the keys in which it differs from the others, as a short text ('' if in none).

    Example:
        >>> differences([{"stages.bits.epochs": "5", "a": "1"}, {"stages.bits.epochs": "9", "a": "1"}])
        ['bits.epochs=5', 'bits.epochs=9']
    """
    keys = sorted({key for flat in settings for key in flat}, key=lambda key: (_rank(key), key))
    differing = [key for key in keys if len({flat.get(key) for flat in settings}) > 1]
    told = [key for key in differing if _rank(key) < 2] or differing
    more = ", ..." if len(told) > most else ""
    return [
        ", ".join(f"{'.'.join(key.split('.')[-2:])}={_brief(flat.get(key, 'null'))}" for key in told[:most]) + more
        for flat in settings
    ]


def _brief(text: str) -> str:
    """A number that a sweeper drew has sixteen digits; six tell it from others."""
    return f"{float(text):.6g}" if re.fullmatch(r"-?\d+\.\d{7,}(e[+-]?\d+)?", text) else text


def _part(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A group of the config; empty where it is absent or null."""
    part = config.get(name)
    return part if isinstance(part, dict) else {}


def _rank(key: str) -> int:
    """What a reader wants to hear first; schedulers and callbacks repeat the epochs, and a method's name tells more
    than what it says of its stages."""
    if key.startswith("quant.stages") or key in ("quant.method", "quant.knob", "quant.baseline"):
        return 2
    if re.fullmatch(r"stages\.\w+\.(epochs|adjust_every_n_epochs)|reg\.alpha|scheme", key):
        return 0
    return 2 if "scheduler" in key or key.startswith(("callbacks", "trainer")) else 1


def _model(model: dict[str, Any]) -> str:
    name = str(model.get("model_name") or str(model["_target_"]).rsplit(".", 1)[-1])
    name = re.sub(r"^resnet(\d+)$", r"ResNet-\1", name).replace("inception_v3", "Inception-V3")
    common = ("_target_", "_partial_", "weights", "shortcuts", "float_activations", "model_name", "pretrained")
    usual = {"shortcut": "B", "aux_logits": True, "transform_input": True}
    rest = [f"{k}={v}" for k, v in sorted(model.items()) if k not in common and usual.get(k) != v]
    return " ".join([name, *rest])


def _data(data: dict[str, Any]) -> str:
    name = str(data.get("_target_", "unknown data")).rsplit(".", 1)[-1].removesuffix("DataModule")
    name = re.sub(r"^CIFAR(\d+)$", r"CIFAR-\1", name)
    if name == "ImageFolder":
        name = f"images in {Path(str(data.get('root'))).name}"
    limit = data.get("limit_train")
    return name if limit is None else f"{name} ({limit} training images)"


def is_number(value: Any) -> TypeGuard[int | float]:
    """Whether a value from a file is a number that can be calculated with: JSON and YAML have no largest one."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _number(value: Any, kind: type) -> Any:
    return kind(value) if is_number(value) else None


def _at(config: Any, key: str) -> Any:
    """The value at a dotted key; None where there is none."""
    for part in key.split("."):
        config = config.get(part) if isinstance(config, dict) else None
    return config
