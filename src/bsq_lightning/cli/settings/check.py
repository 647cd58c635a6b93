"""A composed config held against the models: everything that is wrong, in words, before anything is built."""

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, TypeAdapter, ValidationError

from bsq_lightning.cli.settings.groups import Allocate, Ptq, Quant, Search, Train
from bsq_lightning.cli.settings.signatures import OWN, signature
from bsq_lightning.cli.settings.words import words

#: Arguments of the Trainer that stages and commands set, and what to set instead.
OF_OTHERS = {
    **dict.fromkeys(("max_epochs", "min_epochs", "max_steps", "min_steps"), "a stage is as long as stages.NAME.epochs"),
    "max_time": "until=STAGE stops after a stage, and a signal (SIGTERM, SIGUSR1) saves and stops at once",
    "fast_dev_run": "preflight=only tries a step of every stage, data.limit_train=N makes a quick run",
    "overfit_batches": "data.limit_train=N takes few images",
    "default_root_dir": "hydra.run.dir=FOLDER is the run folder",
    "callbacks": "a callback of yours is +callbacks.NAME={_target_: ...}",
    "logger": "logger=none does without, logger=wandb and logger=tensorboard are the others",
    "enable_checkpointing": "a run without checkpoints could not resume",
    "plugins": "a run has plugins of its own, for whole checkpoints",
    "reload_dataloaders_every_n_epochs": "what is seen is a function of the data module, the seed and the epoch",
    "barebones": "enable_progress_bar=false and logger=none do without bar and logger",
}
#: Arguments that have one right value.
FIXED = {
    "num_sanity_val_steps": (0, "validation before training would use up random numbers"),
    "use_distributed_sampler": (False, "the data modules share the images among ranks themselves"),
}
#: Of the callback that writes last.ckpt: what resume needs.
RESUMABLE: dict[str, Any] = {
    "dirpath": None, "filename": "last", "save_top_k": 1, "monitor": None, "every_n_epochs": 1,
    "save_on_train_epoch_end": True, "enable_version_counter": False, "every_n_train_steps": None,
    "train_time_interval": None, "save_weights_only": False,
}  # fmt: skip
#: Stages that the files of conf/stages have, for whatever method.
SCHEDULED = ("float", "bits", "finetune")
#: Of the network's group: what no constructor gets.
_OF_NETWORK = ("weights", "shortcuts", "float_activations")
#: What callbacks and loggers leave open (null), to be filled in by the run.
_FILLED = ("folder", "dirpath", "save_dir", "every_n_epochs")
Problem = tuple[str, str]
"""A dotted key and a message, in which a null character stands for the key as it was typed."""


def check_values(cfg: DictConfig, model: type[BaseModel] | None = None) -> None:
    """Refuses values of the wrong type or out of range, and keys that nothing reads.

    Args:
        cfg: a composed config.
        model: of which command it is; None: of one that has what train has, which its keys tell.

    Raises:
        ValueError: all that is wrong, a line each: the key as it is typed, the value, what is allowed.
    """
    values: Any = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    raw: Any = OmegaConf.to_container(cfg)
    kind = model or _model_of(values)
    own = _read_elsewhere(raw, kind)
    values = {key: value for key, value in values.items() if key not in own}
    found = list(_problems(values, kind))
    if model is None and not found:
        found = [*_trainer(values["trainer"]), *_stages(values), *_unused(raw), *_checkpoints(values)]
    if not found:
        found = list(_parts(values))
    if found:
        said = dict.fromkeys(problem.replace("\0", _typed(raw, key)) for key, problem in found)
        raise ValueError("\n".join(said))


def _read_elsewhere(raw: Mapping[str, Any], kind: type[BaseModel]) -> set[str]:
    """Keys of the user's own beside the groups, which other settings read (``lr: ${my_lr}``); a resolved config, as
    resume has it, no longer tells."""
    text = OmegaConf.to_yaml(OmegaConf.create(dict(raw)))
    unknown = raw.keys() - _fields(kind).keys()
    return {key for key in unknown if "${" not in text or re.search(rf"\$\{{{re.escape(key)}\b", text)}


def _model_of(values: Mapping[str, Any]) -> type[BaseModel]:
    kinds = {"ptq": Ptq, "search": Search, "sensitivity": Allocate}
    return next((kind for key, kind in kinds.items() if key in values), Train)


# ---- values against models -------------------------------------------------------------------------------------------
def _problems(values: Any, model: type[BaseModel]) -> Iterator[Problem]:
    try:
        model.model_validate(values)
    except ValidationError as refused:
        seen: set[str] = set()
        for error in refused.errors():  # a union has one for each member
            key, kind, value, beside = _place(model, values, error["loc"])
            if key in seen:
                continue
            seen.add(key)
            if error["type"] == "extra_forbidden":
                yield key, f"\0 is unknown{_instead(key, beside)}"
            elif error["type"] == "missing":
                yield key, f"\0 is missing: it must be {words(kind)}"
            else:
                yield key, f"\0 must be {words(kind)}, not {_shown(value)}"


def _place(kind: Any, value: Any, location: tuple[int | str, ...]) -> tuple[str, Any, Any, list[str]]:
    """Where an error is: the dotted key, the type that is wanted, the value that is there, and the keys beside it."""
    path, beside = list[str](), list[str]()
    for part in location:
        fields = _fields(kind)
        if not isinstance(value, dict) or (part not in value and part not in fields):
            break  # a member of a union, a place in a list: of those the whole is shown
        beside = list(fields)
        path.append(str(part))
        kind, value = fields.get(str(part), _members(kind)), value.get(part)
    return ".".join(path), kind, value, beside


def _bare(kind: Any) -> list[Any]:
    """The members of a type, without what is annotated."""
    if get_origin(kind) is Annotated:
        return _bare(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [bare for each in get_args(kind) for bare in _bare(each)]
    return [kind]


def _fields(kind: Any) -> dict[str, Any]:
    """Types by key, of the models in a type."""
    models = [each for each in _bare(kind) if isinstance(each, type) and issubclass(each, BaseModel)]
    return {
        model.model_fields[name].alias or name: hint
        for model in models
        for name, hint in get_type_hints(model, include_extras=True).items()
        if name in model.model_fields
    }


def _members(kind: Any) -> Any:
    """The type of a mapping's values, in a type."""
    return next((get_args(each)[1] for each in _bare(kind) if get_origin(each) is dict), Any)


def _instead(key: str, beside: Iterable[str]) -> str:
    known = [name for name in beside if not name.startswith("_")]
    close = get_close_matches(key.rpartition(".")[2], known, 1)
    return f": did you mean {close[0]}?" if close else f"; there are {', '.join(known)}" if known else ""


# ---- what models cannot tell -----------------------------------------------------------------------------------------
def _trainer(trainer: Mapping[str, Any]) -> Iterator[Problem]:
    from lightning import Trainer

    usual = inspect.signature(Trainer).parameters
    for key, value in trainer.items():
        if key in OF_OTHERS and value is not None and value != usual[key].default:
            yield f"trainer.{key}", f"\0={value} is not the Trainer's to say: {OF_OTHERS[key]}"
        if key in FIXED and value != FIXED[key][0]:
            yield f"trainer.{key}", f"\0 is {_shown(FIXED[key][0])}, not {_shown(value)}: {FIXED[key][1]}"


def _stages(values: Mapping[str, Any]) -> Iterator[Problem]:
    known = dict.fromkeys(("float", *(values["quant"]["stages"] if values["quant"] else ())))
    for name in values["stages"]:
        if name not in known and name not in SCHEDULED:
            yield f"stages.{name}", f"\0 is no stage of this run; its stages are {', '.join(known)}"
    model, float_stage = values["model"], values["stages"].get("float") or {}
    if values["quant"] and float_stage.get("epochs") == 0 and not (model.get("weights") or model.get("pretrained")):
        yield (
            "stages.float.epochs",
            "\0=0 without float weights would quantize random ones: give model.weights=FILE, epochs for the float "
            "stage, or stages.float.epochs=null for a network that brings weights of its own",
        )


def _unused(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Keys of the method's own that nothing reads; a resolved config no longer tells."""
    text = OmegaConf.to_yaml(OmegaConf.create(dict(raw)))
    quant = raw["quant"] or {}
    if "${" not in text or not isinstance(quant, dict):
        return
    known = [*_fields(Quant), *quant.get("stages", ())]
    for key in quant:
        if key not in known and not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", text):
            used = [each for each in quant if each != key]
            yield f"quant.{key}", f"\0 is used by nothing{_instead(key, used)}"


def _checkpoints(values: Mapping[str, Any]) -> Iterator[Problem]:
    for name, part in (values["callbacks"] or {}).items():
        if not str((part or {}).get("_target_")).endswith(".ModelCheckpoint"):
            continue
        if name == "checkpoint":
            for key, value in RESUMABLE.items():
                if (given := part.get(key, value)) != value:
                    yield (
                        f"callbacks.checkpoint.{key}",
                        f"\0={given} must be {_shown(value)}: resume needs last.ckpt, whole and of every epoch. "
                        "For further checkpoints add a callback beside it, +callbacks.NAME={_target_: ...}",
                    )
        elif part.get("filename") == "last":
            yield f"callbacks.{name}.filename", "\0=last is the file that resume reads: choose another name"
        elif values.get("average") and part.get("monitor") is not None:
            yield (
                f"callbacks.{name}.monitor",
                f"\0={part['monitor']} would keep weights that were not measured: with average=ema the averages are, "
                "and between epochs training goes on, and is saved, without them. Use average=none, or leave "
                f"callbacks.{name} out: after the last epoch last.ckpt holds the averages",
            )


def _shown(value: Any) -> str:
    """A value as it is typed; text in quotes."""
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), repr(value))


# ---- arguments against signatures ------------------------------------------------------------------------------------
def _parts(values: Mapping[str, Any]) -> Iterator[Problem]:
    """What the targets find wrong with their arguments; of stages that are left out nothing is asked."""
    for key, part in _targets(_trained(values)):
        target = part["_target_"]
        try:
            taken = signature(target)
        except ImportError as error:
            missing = getattr(error.__cause__, "name", None) if isinstance(error.__cause__, ImportError) else None
            if missing is None or missing.partition(".")[0] == target.partition(".")[0]:
                reason = " ".join(str(error).split())
                yield f"{key}._target_", f"\0 is {target}, which cannot be found: {reason}"
            continue  # a package that is not installed: the constructor says what to install
        if taken.refused:
            yield key, f"\0 cannot be {target}: {taken.refused}"
        for name, value in part.items():
            if name in OWN or (key == "model" and name in _OF_NETWORK):
                continue
            if name not in taken.types:
                if not taken.is_open:
                    yield f"{key}.{name}", f"\0 is unknown to {target}{_instead(name, taken.types)}"
            elif not _fits(value, taken.types[name], name):
                yield f"{key}.{name}", f"\0 must be {words(taken.types[name])}, not {_shown(value)}"


def _fits(value: Any, kind: Any, name: str) -> bool:
    if isinstance(value, dict) and "_target_" in value or value is None and name in _FILLED:
        return True
    try:
        TypeAdapter(kind).validate_python(value)
    except ValidationError:
        return False
    return True


def _trained(values: Mapping[str, Any]) -> dict[str, Any]:
    def planned(stages: Any) -> dict[str, Any]:
        return {name: stage for name, stage in (stages or {}).items() if not stage or stage.get("epochs") != 0}

    values = dict(values)
    if "stages" in values:
        scheduled = planned(values["stages"])
        values["stages"] = {
            name: stage for name, stage in scheduled.items() if stage and stage.get("epochs") is not None
        }
    if values.get("quant"):
        values["quant"] = values["quant"] | {"stages": planned(values["quant"]["stages"])}
    return values


def _targets(node: Any, key: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield key, node
        for name, value in node.items():
            yield from _targets(value, f"{key}.{name}" if key else str(name))
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from _targets(value, f"{key}.{i}")


def _typed(raw: Any, key: str) -> str:
    """The key that a user types for this one: where it only repeats another, that one."""
    node = raw
    for part in key.split("."):
        node = node.get(part) if isinstance(node, dict) else None
    other = re.fullmatch(r"\$\{([\w.]+)\}", node) if isinstance(node, str) else None
    return _typed(raw, other[1]) if other and not other[1].startswith(".") else key
