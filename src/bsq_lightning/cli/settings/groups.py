"""One model for each group of ``conf/``: the keys that there are, and what each may be."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from bsq_lightning.cli.settings.words import (
    Bits,
    BitsOrFloat,
    Bool,
    NotNegative,
    NotNegativeWhole,
    Number,
    Path,
    Patterns,
    Positive,
    PositiveWhole,
    Seed,
    Text,
    TwoOrMore,
    Words,
)


class Group(BaseModel):
    """Keys that are all known; a misspelt one is refused."""

    model_config = ConfigDict(extra="forbid", arbitrary_types_allowed=True)
    __settings__ = "a group of settings"


class Part(BaseModel):
    """What a ``_target_`` is built from: its arguments are held against its signature (``signatures.py``)."""

    model_config = ConfigDict(extra="allow")
    __settings__ = "a group of settings with a _target_"
    target: Text = Field(alias="_target_")


class Change(BaseModel):
    """Arguments of a part that the method names, or the part itself."""

    model_config = ConfigDict(extra="allow")
    __settings__ = "a group of settings with a _target_"
    target: Text | None = Field(None, alias="_target_")


def _nothing(value: Any) -> Any:
    """An empty group, such as ``mix=none``, is none."""
    return None if value == {} else value


def _no_penalty(value: Any) -> Any:
    """What an experiment says of alpha stays behind where ``reg=none`` takes the penalty away."""
    return None if isinstance(value, dict) and value.keys() <= {"alpha"} else value


Optional = Annotated[Part | None, BeforeValidator(_nothing)]
Parts = Annotated[dict[str, Optional] | None, Words("a group of parts, each with a name and a _target_")]


class Model(Part):
    weights: Path | None = None
    shortcuts: Patterns = []
    float_activations: Patterns = []


class Stage(Group):
    epochs: NotNegativeWhole | None = None
    optimizer: Change | None = None
    scheduler: Change | None = None
    adjust_every_n_epochs: PositiveWhole | None = None
    regularized: Bool = False
    regularizer: Change | None = None
    allocator: Change | None = None
    batch_norm_batches: PositiveWhole | None = None
    rewind: Bool = False
    at_start: Change | None = None
    after_step: Change | None = None


Stages = Annotated[dict[str, Stage | None], Words("a group of stages, each with its epochs")]


class Quant(BaseModel):
    """Beside these a method has keys of its own, which must be used."""

    model_config = ConfigDict(extra="allow")
    __settings__ = "a group of settings with a method"
    method: Text
    knob: Text | None
    knob_grows: Bool = False
    baseline: Bool
    paper: Text | None = None
    deviations: list[Text] = []
    stages: Stages
    precision: Bits
    first_last_precision: Bits | None
    act_precision: BitsOrFloat | None
    skip: Patterns
    float_activations: Patterns
    calibration_batches: NotNegativeWhole
    quantized_biases: Patterns
    scheme: Path | None
    activation: Part


_Limit = (
    Annotated[int, Field(strict=True, ge=1), Words("a number of batches from 1 on")]
    | Annotated[float, Field(strict=True, gt=0, le=1), Words("a fraction above 0 and up to 1 (data.val_split=0 does "
                                                             "without validation images)")]
    | None
)  # fmt: skip
_Devices = (
    Annotated[int, Field(strict=True, ge=1), Words("a number from 1 on")]
    | Literal["auto", -1]
    | Annotated[list[NotNegativeWhole], Field(min_length=1), Words("a list of GPUs")]
    | Annotated[str, Field(strict=True, pattern=r"^\d+(,\d+)*,?$"), Words("text such as '0,1'")]
)


class Trainer(Part):
    """What stages and commands set themselves is refused by name (``check.py``); the rest is Lightning's."""

    accelerator: Text
    devices: _Devices
    num_nodes: PositiveWhole
    strategy: Annotated[Text | Part, Words("a name of Lightning's, or a group of settings with a _target_")]
    precision: Literal[
        "32-true", "64-true", "16-mixed", "bf16-mixed", "16-true", "bf16-true", "transformer-engine",
        "transformer-engine-float16", "64", "32", "16", "bf16", 64, 32, 16,
    ]  # fmt: skip
    log_every_n_steps: PositiveWhole
    enable_progress_bar: Bool
    gradient_clip_val: NotNegative | None
    accumulate_grad_batches: PositiveWhole
    limit_train_batches: _Limit
    limit_val_batches: _Limit
    limit_test_batches: _Limit
    check_val_every_n_epoch: PositiveWhole | None = None


class Train(Group):
    """What ``conf/train.yaml`` composes, and the config of a run folder."""

    model: Model
    data: Part
    quant: Annotated[Quant | None, BeforeValidator(_nothing)]
    reg: Annotated[Optional, BeforeValidator(_no_penalty)]
    mix: Optional = None
    distill: Optional = None
    freeze: Optional = None
    average: Optional = None
    stages: Stages
    trainer: Trainer
    callbacks: Parts
    logger: Parts
    seed: Seed
    compile: Bool = False
    channels_last: Bool = False
    scheme: Path | None = None
    preflight: Literal["run", "only"]
    until: Text | None = None
    objective: list[Text] | Text = []
    float_stage: Path | None = None
    oversubscribe: Bool = False
    trust: list[Text] | Text = []


class Ptq(Train):
    ptq: Part
    run: Path | None
    stage: Text | None
    first_last: Part | None
    fold: Bool
    images: PositiveWhole


class Target(Group):
    kilobytes: Positive | None
    mean_bits: Positive | None
    gbops: Positive | None


class SearchLimits(Group):
    max_runs: PositiveWhole
    tolerance: Number
    factor: Number


class Search(Train):
    target: Target
    search: SearchLimits


class Allocate(Train):
    target: Target
    sensitivity: Part
    images: PositiveWhole


class Where(Group):
    root: Path | None


class ThisMachine(Group):
    accelerator: Text | None


class Evaluate(Group):
    run: Path
    data: Where
    trainer: ThisMachine
    trust: list[Text] | Text


class Slices(Group):
    run: Path
    rows: PositiveWhole
    slice_bits: PositiveWhole
    adc_bits: list[NotNegativeWhole]
    images: NotNegativeWhole | None
    data: Where
    trainer: ThisMachine
    trust: list[Text] | Text


class Format(Group):
    file: Text
    write: Part


class Export(Group):
    export: Format
    run: Path
    out: Path | None
    overwrite: Bool
    card: Bool
    latency: Annotated[Literal[0] | TwoOrMore, Words("0 or a whole number of rounds from 2 on")]
    images: PositiveWhole
    data: Where
    trust: list[Text] | Text


class Card(Group):
    run: Path
    diff: Path | None
    overwrite: Bool
    data: Where
    trust: list[Text] | Text


class Accelerator(Group):
    run: Path
    bits: Bits
    array: Part
    energy: Part


class Report(Group):
    runs: Path | Annotated[list[Path], Field(min_length=1), Words("a list of paths")]
    out: Path | None
