"""The stages of a run as the config has them: an ordered list, from the float stage to the method's last."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf

FLOAT = "float"


@dataclass(frozen=True)
class StageSettings:
    """One stage. What a method does in it stands under ``quant.stages``, how long and how fast under ``stages``.

    Args:
        name: its name, in checkpoints, metrics and streams of random numbers.
        epochs: 0 leaves the stage out; None: it trains nothing (a method without training).
        quantizer: builds weight quantizers; None goes on with those of the stage before, or with float weights.
        regularized: whether the config's regularizer acts.
        regularizer: one of the stage's own, in its place.
        adjust_every_n_epochs: interval of precision adjustments; None: none.
        allocator: exchanges bits between layers while the stage trains.
        batch_norm_batches: training batches that batch norm is measured on before the network is; None: the running
            statistics are kept.
        rewind: whether it begins with the float weights, at the scheme found so far.
        at_start: called with the network when the stage begins: with the quantizers of the stage before, if it has
            any, before its own take over; it writes the weights that it changes.
        after_step: called with the network after every step of the optimizer.
        optimizer, scheduler: partials.
    """

    name: str
    epochs: int | None = None
    quantizer: Any = None
    regularized: bool = False
    regularizer: Any = None
    adjust_every_n_epochs: int | None = None
    allocator: Any = None
    batch_norm_batches: int | None = None
    rewind: bool = False
    at_start: Any = None
    after_step: Any = None
    optimizer: Any = None
    scheduler: Any = None


def stage_settings(cfg: DictConfig, name: str) -> StageSettings:
    """What the config says of a stage.

    Raises:
        ValueError: there is no such stage, or it has epochs and no optimizer, or it is not said how long it is.
    """
    method: Any = (cfg.quant.stages.get(name) or {}) if cfg.quant and name in cfg.quant.stages else None
    schedule: Any = cfg.stages.get(name)
    if method is None and name != FLOAT:
        known = [FLOAT, *(cfg.quant.stages if cfg.quant else ())]
        raise ValueError(f"there is no stage {name!r} in this run; its stages are {', '.join(known)}")
    merged = _merged(method or {}, schedule or {})
    if "epochs" not in merged:
        raise ValueError(
            f"stage {name} has no epochs: set stages.{name}.epochs and stages.{name}.optimizer, or choose a file of "
            "stages that has it (stages=...)"
        )
    if merged["epochs"] and not merged.get("optimizer"):
        raise ValueError(f"stage {name} has epochs, but no optimizer: set stages.{name}.optimizer")
    known = [key for key in StageSettings.__dataclass_fields__ if key not in ("name", "quantizer")]
    own = {key: merged[key] for key in known if key in merged}
    unknown = sorted(set(method or {}) - set(own))
    if unknown:
        where = f"; the quantizer of this stage is quant.{name}" if unknown[0] == "quantizer" else ""
        raise ValueError(f"quant.stages.{name}.{unknown[0]} is unknown; a stage has {', '.join(known)}{where}")
    quantizer = cfg.quant.get(name) if cfg.quant and name != FLOAT else None
    return StageSettings(**{**own, "name": name, "quantizer": quantizer})


def _merged(method: Any, schedule: Any) -> dict[str, Any]:
    """What a schedule says of a method's stage replaces what the method says; parts of an optimizer, part by part."""
    merged = {**method, **schedule}
    for key in method:
        one, other = method.get(key), schedule.get(key)
        if isinstance(one, DictConfig) and isinstance(other, DictConfig) and "_target_" not in other:
            parts = [OmegaConf.to_container(part, resolve=True) for part in (one, other)]
            merged[key] = OmegaConf.merge(*(OmegaConf.create(part) for part in parts))
    return merged


def quantizer_of(cfg: DictConfig, name: str) -> Any:
    """What builds a stage's weight quantizers: its own, or that of the nearest stage before it; None: float weights."""
    if name == FLOAT or not cfg.quant:
        return None
    before = list(cfg.quant.stages)
    own = [stage_settings(cfg, stage).quantizer for stage in before[: before.index(name) + 1]]
    return next((quantizer for quantizer in reversed(own) if quantizer), None)


def has_float_weights(cfg: DictConfig) -> bool:
    """Whether the model comes with float weights, so that no float stage is needed."""
    return bool(cfg.model.get("weights") or cfg.model.get("pretrained"))


def planned_stages(cfg: DictConfig) -> list[str]:
    """The stages that this config runs, in order.

    Raises:
        ValueError: there is none.
    """
    stages = [] if has_float_weights(cfg) else [FLOAT]
    stages += list(cfg.quant.stages) if cfg.quant else []
    planned = [stage for stage in stages if stage_settings(cfg, stage).epochs != 0]
    if not planned:
        raise ValueError(
            "nothing to do: no stage has epochs (model.weights skips the float stage, quant=none the others)"
        )
    return planned


def searched_stage(cfg: DictConfig) -> str | None:
    """The stage in which the method's knob decides the size: the last that is adjusted, regularized or allocated."""
    settings = [stage_settings(cfg, stage) for stage in planned_stages(cfg)]
    return next((s.name for s in reversed(settings) if s.regularized or s.adjust_every_n_epochs or s.allocator), None)
