"""Wrong settings, and what the message must say of each: before any data is read, and in words that name the key."""

import copy
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from PIL import Image

from bsq_lightning.cli.building.checks import check_settings
from bsq_lightning.cli.building.stage import StageSettings
from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.cli.settings.groups import Stage
from bsq_lightning.run_folder import RunFolder, SweepFolder
from tests.cli.commands import run

GROUPS = {path.name for path in Path(CONF_DIR).iterdir() if path.is_dir()}
SGD = "stages.bits.optimizer"
BEST = "+callbacks.best={_target_: lightning.pytorch.callbacks.ModelCheckpoint, monitor: val/acc, filename: best}"
#: Overrides of ``experiment=quickstart``, and words that the message must have: the key first.
WRONG: list[tuple[Sequence[str], Sequence[str]]] = [
    # epochs and intervals
    *[
        ([f"stages.{stage}.epochs={value}"], [f"stages.{stage}.epochs must be a whole number from 0 on", shown])
        for stage in ("float", "bits", "finetune")
        for value, shown in (("-1", "-1"), ("true", "true"), ("1.5", "1.5"), ("inf", "inf"), ("many", "'many'"),
                             ("[3]", "[3]"))
    ],
    *[
        ([f"stages.bits.adjust_every_n_epochs={value}"], ["stages.bits.adjust_every_n_epochs must be a whole", "1 on"])
        for value in ("0", "-3", "2.5", "true", "often")
    ],
    (["stages.float.epochs=0"], ["stages.float.epochs=0", "model.weights=FILE"]),
    (["stages.bits=3"], ["stages.bits must be", "3"]),
    (["stages.bits.optimizer=null"], ["stages.bits.optimizer"]),
    # optimizers and schedulers
    *[([f"{SGD}.lr={value}"], [f"{SGD}.lr must be a number that is not negative"])
      for value in ("nan", "inf", "-1", "fast", "true", "null", "[0.1]")],
    *[([f"{SGD}.momentum={value}"], [f"{SGD}.momentum must be a number from 0 to below 1"])
      for value in ("2", "1", "-0.1", "nan", "much")],
    *[([f"{SGD}.weight_decay={value}"], [f"{SGD}.weight_decay must be a number that is not negative"])
      for value in ("nan", "inf", "-1", "little")],
    ([f"+{SGD}.nesterov=yes_please"], [f"{SGD}.nesterov must be true or false"]),
    ([f"+{SGD}.learning_rate=0.1"], [f"{SGD}.learning_rate", "torch.optim.SGD", "lr"]),
    *[(["stages.bits.scheduler.milestones=" + value], ["stages.bits.scheduler.milestones must be", "rising"])
      for value in ("null", "ten", "[-1]", "[20,10]", "[1.5]", "[5,5]", "3")],
    *[([f"stages.bits.scheduler.gamma={value}"], ["stages.bits.scheduler.gamma must be a number above 0"])
      for value in ("nan", "inf", "0", "-1", "small", "null")],
    *[([f"stages.finetune.scheduler.T_max={value}"], ["stages.finetune.scheduler.T_max must be a whole number"])
      for value in ("0", "-1", "2.5", "long", "null")],
    (["stages.bits.scheduler={_target_: torch.optim.lr_scheduler.ReduceLROnPlateau, _partial_: true}"],
     ["stages.bits.scheduler", "ReduceLROnPlateau", "CosineAnnealingLR"]),
    (["stages.bits.scheduler=cosine"], ["stages.bits.scheduler must be", "_target_"]),
    # numbers of the run
    *[([f"seed={value}"], ["seed must be a whole number"]) for value in ("1.5", "null", "one", "-1", "true")],
    *[([f"{key}={value}"], [f"{key} must be true or false", value])
      for key in ("compile", "channels_last", "data.augment") for value in ("fast", "2")],
    (["preflight=onyl"], ["preflight must be run or only", "'onyl'"]),
    (["until=5"], ["until"]),
    (["until=nowhere"], ["until is the last stage of this start", "nowhere"]),
    (["scheme=3"], ["scheme must be"]),
    (["float_stage=[a]"], ["float_stage must be"]),
    # data
    *[([f"data.{key}={value}"], [f"data.{key} must be a whole number from 1 on", value])
      for key in ("batch_size", "eval_batch_size") for value in ("0", "-1", "32.5", "large", "null")],
    *[([f"data.num_workers={value}"], ["data.num_workers must be a whole number from 0 on or null"])
      for value in ("-1", "1.5", "all")],
    *[([f"data.padding={value}"], ["data.padding must be a whole number from 0 on"]) for value in ("-1", "0.5", "a")],
    *[([f"data.limit_train={value}"], ["data.limit_train must be a whole number from 2 on or null"])
      for value in ("0", "1", "-5", "64.5", "few")],
    *[([f"data.val_split={value}"], ["data.val_split must be a number of images", "below 1"])
      for value in ("-1", "1.5", "-0.1", "nan", "half", "null", "true")],
    (["+data.bathc_size=3"], ["data.bathc_size", "batch_size"]),
    (["data=image_folder", "data.image_size=224.5"], ["data.image_size must be a whole number from 1 on"]),
    (["data=image_folder", "data.broken_images=ignore"], ["data.broken_images must be stop or skip"]),
    (["data=cifar10", "data.root=5"], ["data.root must be"]),
    # groups
    (["+bathc_size=3"], ["bathc_size is unknown"]),
    (["+sed=2"], ["sed is unknown", "seed"]),
    # quantization
    *[([f"quant.precision={value}"], ["quant.precision must be a whole number of bits from 1 to 16"])
      for value in ("17", "0", "2.5", "true", "null", "many")],
    *[([f"quant.act_precision={value}"], ["quant.act_precision must be a whole number of bits from 0 to 16"])
      for value in ("-1", "17", "2.5", "4bit")],
    *[([f"quant.calibration_batches={value}"], ["quant.calibration_batches must be a whole number from 0 on"])
      for value in ("-1", "2.5", "null", "some")],
    *[([f"quant.{key}={value}"], [f"quant.{key} must be a list of name patterns"])
      for key in ("skip", "quantized_biases") for value in ("null", "conv1", "3", "[3]")],
    (["quant.rewind=maybe"], ["quant.rewind must be true or false"]),
    (["quant.max_precision=eight"], ["quant.max_precision must be a whole number"]),
    (["quant.max_precision=8.5"], ["quant.max_precision must be a whole number"]),
    (["+quant.presicion=4"], ["quant.presicion is used by nothing", "precision"]),
    (["+quant.bits.presicion=4"], ["quant.bits.presicion", "BitPlaneQuantizer"]),
    (["+quant.stages.bits.regularised=true"], ["quant.stages.bits.regularised is unknown", "regularized"]),
    (["+stages.bits.adjust_every=2"], ["stages.bits.adjust_every is unknown", "adjust_every_n_epochs"]),
    (["+stages.finetun.epochs=2"], ["stages.finetun is no stage of this run", "finetune"]),
    (["quant=csq", "reg=csq_budget", "reg.target_bits=few"], ["reg.target_bits must be a number"]),
    (["quant=lsq", "reg=none", "quant.step_lr_factor=big"], ["quant.step_lr_factor must be a number"]),
    (["quant=water_filling", "reg=none", "quant.exchanges=2.5"], ["quant.exchanges must be a whole number"]),
    (["quant=water_filling", "reg=none", "quant.until=late"], ["quant.until must be a number"]),
    # penalties
    *[([f"reg.alpha={value}"], ["reg.alpha must be a number that is not negative"])
      for value in ("-1", "nan", "inf", "strong", "null", "true")],
    (["+reg.alhpa=1"], ["reg.alhpa", "alpha"]),
    # models
    (["model._target_=no.such.Net"], ["model._target_", "no.such.Net"]),
    (["model._target_=5"], ["model._target_ must be"]),
    (["model.weights=[a]"], ["model.weights must be"]),
    (["model.shortcuts=conv1"], ["model.shortcuts must be a list of name patterns"]),
    (["+model.dept=8"], ["model.dept"]),
    # the Trainer
    *[([f"+trainer.{key}={value}"], [f"trainer.{key}", remedy]) for key, value, remedy in (
        ("max_epochs", "3", "stages.NAME.epochs"), ("min_epochs", "3", "stages.NAME.epochs"),
        ("max_steps", "100", "stages.NAME.epochs"), ("max_time", "00:01:00:00", "until"),
        ("fast_dev_run", "true", "preflight=only"), ("overfit_batches", "1", "data.limit_train"),
        ("default_root_dir", "x", "hydra.run.dir"), ("callbacks", "[]", "callbacks.NAME"),
        ("enable_checkpointing", "false", "resume"), ("plugins", "[]", "plugins"), ("logger", "false", "logger=none"),
        ("reload_dataloaders_every_n_epochs", "1", "data"), ("barebones", "true", "logger=none"),
    )],
    (["trainer.num_sanity_val_steps=2"], ["trainer.num_sanity_val_steps", "random numbers"]),
    (["trainer.use_distributed_sampler=true"], ["trainer.use_distributed_sampler", "share the images"]),
    (["trainer.strategy=dpp"], ["trainer.strategy=dpp", "ddp"]),
    (["trainer.strategy=fsdp"], ["trainer.strategy=fsdp", "use ddp"]),
    *[([f"trainer.devices={value}"], ["trainer.devices must be"])
      for value in ("0", "-2", "1.5", "null", "two", "true", "[]")],
    *[([f"trainer.num_nodes={value}"], ["trainer.num_nodes must be a whole number from 1 on"])
      for value in ("0", "1.5", "two")],
    *[([f"trainer.gradient_clip_val={value}"], ["trainer.gradient_clip_val must be a number that is not negative"])
      for value in ("-1", "nan", "inf", "some")],
    *[([f"trainer.log_every_n_steps={value}"], ["trainer.log_every_n_steps must be a whole number from 1 on"])
      for value in ("-1", "0", "2.5", "null")],
    *[([f"trainer.accumulate_grad_batches={value}"], ["trainer.accumulate_grad_batches must be a whole number from 1"])
      for value in ("0", "-1", "1.5", "two")],
    *[([f"trainer.limit_{part}_batches={value}"], [f"trainer.limit_{part}_batches must be", "from 1 on"])
      for part in ("train", "val", "test") for value in ("0", "-1", "1.5", "nan", "few")],
    (["+trainer.check_val_every_n_epoch=0"], ["trainer.check_val_every_n_epoch must be a whole number from 1 on"]),
    (["trainer.accelerator=3"], ["trainer.accelerator must be"]),
    (["trainer.precision=bf17"], ["trainer.precision must be one of"]),
    (["trainer.deterministic=perhaps"], ["trainer.deterministic must be"]),
    (["trainer.enable_progress_bar=3"], ["trainer.enable_progress_bar must be true or false"]),
    (["+trainer.max_epoch=3"], ["trainer.max_epoch"]),
    # callbacks and loggers
    (["callbacks.preemption.every_n_steps=often"], ["callbacks.preemption.every_n_steps must be a whole number"]),
    (["+callbacks.mine=5"], ["callbacks.mine must be", "_target_"]),
    (["+callbacks.run_recorder.fodler=x"], ["callbacks.run_recorder.fodler", "folder"]),
    *[([f"{add}callbacks.checkpoint.{key}={value}"], [f"callbacks.checkpoint.{key}={shown}", "resume"])
      for add, key, value, shown in (
        ("", "dirpath", "/elsewhere", "/elsewhere"), ("", "filename", "best", "best"), ("", "save_top_k", "0", "0"),
        ("", "every_n_epochs", "5", "5"), ("", "monitor", "val/acc", "val/acc"),
        ("", "save_on_train_epoch_end", "false", "False"), ("+", "every_n_train_steps", "7", "7"),
        ("+", "save_weights_only", "true", "True"),
    )],
    (["average=ema", BEST], ["callbacks.best.monitor=val/acc", "not measured", "average=none", "last.ckpt"]),
]  # fmt: skip


@cache
def _groups(choices: tuple[str, ...], command: str) -> DictConfig:
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return compose(command, overrides=["experiment=quickstart", "logger=none", *choices])


def composed(*overrides: str, command: str = "train") -> DictConfig:
    """As Hydra composes it; files are read once for each choice of them, since a row changes a value or two."""
    choices = tuple(each for each in overrides if each.partition("=")[0] in GROUPS)
    cfg = copy.deepcopy(_groups(choices, command))
    values = [each for each in overrides if each not in choices]
    ConfigLoaderImpl._apply_overrides_to_config(OverridesParser.create().parse_overrides(values), cfg)
    return cfg


@pytest.mark.parametrize(("overrides", "expected"), WRONG, ids=[" ".join(overrides) for overrides, _ in WRONG])
def test_a_wrong_setting_is_refused_in_words_that_name_it(overrides: Sequence[str], expected: Sequence[str]) -> None:
    with pytest.raises((ValueError, HydraException, OmegaConfBaseException)) as refused:
        check_settings(composed(*overrides))
    for words in expected:
        assert words in str(refused.value)


#: What is unusual and right.
RIGHT: list[Sequence[str]] = [
    [BEST],
    ["average=ema"],
    ["stages.bits.epochs=0"],
    ["stages.finetune.epochs=0"],
    ["quant=none", "reg=none"],
    ["quant=uniform"],
    ["quant=uniform", "reg=none"],
    ["stages.bits.scheduler=null"],
    [f"{SGD}.lr=1"],
    [f"{SGD}._target_=torch.optim.Adam", f"~{SGD}.momentum", f"+{SGD}.betas=[0.9,0.99]"],
    ["trainer=ddp_cpu"],
    ["trainer.devices=auto"],
    ["trainer.accelerator=gpu", "trainer.devices=[0,1]", "trainer.strategy=auto"],
    ["trainer.limit_train_batches=0.5"],
    ["trainer.limit_val_batches=1"],
    ["trainer.limit_test_batches=1.0"],
    ["+trainer.profiler=simple"],
    ["+trainer.fast_dev_run=false", "+trainer.overfit_batches=0.0", "+trainer.max_steps=-1"],
    ["experiment=quickstart", "stages.float.epochs=null"],
    ["+my_rate=0.1", f"{SGD}.lr=${{my_rate}}"],
    ["+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: a, divergence_threshold: inf}"],
    ["data.val_split=0"],
    ["data.val_split=0.5"],
    ["model=custom", "model._target_=bsq_lightning.models.ResNetCifar", "+model.depth=8"],
    ["model=resnet18", "model.weights=DEFAULT"],
    ["+callbacks.stop={_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: val/acc}"],
    ["callbacks.epoch_line=null"],
    ["~callbacks.skipped_images"],
    ["mix=cutmix", "distill=float"],
    ["logger=tensorboard"],
    ["logger=[wandb,tensorboard]"],
    ["quant.state_dtype=bfloat16"],
    ["quant=msq", "reg=msq_lsb", "reg.target_compression=null"],
]


@pytest.mark.parametrize("overrides", RIGHT, ids=[" ".join(overrides) for overrides in RIGHT])
def test_a_right_setting_is_admitted(overrides: Sequence[str]) -> None:
    cfg = composed(*overrides)
    check_settings(cfg)
    # As ranks, resume and a later start of the same run read it.
    resolved = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
    assert isinstance(resolved, DictConfig)
    check_settings(resolved)


FILES = sorted(
    f"{path.parent.name}={path.stem}"
    for path in Path(CONF_DIR).glob("*/*.yaml")
    if path.parent.name not in ("hydra", "export", "sensitivity", "ptq")
    and path.stem not in ("custom", "base")
    and (path.parent.name, path.stem) != ("stages", "none")
)


@pytest.mark.parametrize("choice", FILES)
def test_every_file_of_ours_is_admitted(choice: str) -> None:
    more = {
        "model=timm": ["model.model_name=resnet10t"],
        "quant=from_scheme": ["scheme=some.json"],
        "quant=sensitivity": ["scheme=some.json"],
    }
    floats = [] if choice == "model=timm" or choice.startswith("experiment") else ["stages.float.epochs=1"]
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        cfg = compose("train", overrides=[choice, *more.get(choice, floats)])
    if choice.startswith("model=timm"):
        pytest.importorskip("timm")
    check_settings(cfg)


def test_a_run_says_all_that_is_wrong_at_once_and_trains_nothing(tmp_path: Path) -> None:
    wrong = ["stages.bits.epochs=-1", "seed=1.5"]
    code, output = run("train", "experiment=quickstart", "logger=none", *wrong, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 1 and "Traceback" not in output, output
    assert "stages.bits.epochs must be a whole number from 0 on" in output and "seed must be" in output, output
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "arguments", "expected"),
    [
        ("train", ["-m", "seed=1,one", "stages.bits.epochs=1"], ["seed=one", "No point was started"]),
        ("search", ["target.kilobytes=small"], ["target.kilobytes must be a number above 0"]),
        ("search", ["target.kilobytes=5", "search.max_runs=2.5"], ["search.max_runs must be a whole number"]),
        ("search", ["target.kilobytes=5", "stages.bits.epochs=1.5"], ["stages.bits.epochs must be"]),
        ("allocate", ["target.mean_bits=2", "images=many"], ["images must be a whole number"]),
        ("allocate", ["target.mean_bits=2", "sensitivity.bits=[0.5]"], ["sensitivity.bits must be"]),
        ("allocate", ["target.mean_bits=2", "preflight=only"], ["leave preflight out"]),
        ("train", ["quant=csq", "reg=csq_budget", "stages.bits.epochs=1"], ["stage soft has one epoch", "2 or more"]),
        ("search", ["target.kilobytes=5", "preflight=only"], ["preflight=only is of train"]),
    ],
)
def test_every_command_asks_the_same(command: str, arguments: list[str], expected: list[str], tmp_path: Path) -> None:
    where = [f"hydra.run.dir={tmp_path}", f"hydra.sweep.dir={tmp_path}"]
    code, output = run(command, "experiment=quickstart", *arguments, "logger=none", *where, cwd=tmp_path)
    assert code == 1 and "Traceback" not in output, output
    for words in expected:
        assert words in output, output


#: What Hydra or a folder refuses: command, arguments (DIR is an empty folder), what the message must name.
COMMANDS: list[tuple[str, Sequence[str], Sequence[str]]] = [
    *[("train", [f"{group}=null"], [f"{group} must be one of", "not null"]) for group in ("data", "trainer", "stages")],
    ("train", ["hydra.run.dir=DIR/file"], ["DIR/file", "hydra.run.dir=FOLDER"]),
    ("train", [f"hydra.run.dir=DIR/{'long' * 100}"], ["cannot be made", "hydra.run.dir=FOLDER"]),
    ("train", ["hydra.run.dir=/proc/run"], ["/proc/run", "hydra.run.dir=FOLDER"]),
    ("train", ["reg.alhpa=1"], ["Could not override 'reg.alhpa'"]),
    ("train", ["resume=DIR/file"], ["DIR/file is not a run folder but a file"]),
    ("train", ["resume=DIR/begun"], ["DIR/begun has no config.yaml", "same command again", "hydra.run.dir=DIR/begun"]),
    ("train", ["quant=uniform", "reg=bit_group_lasso"], ["reg=bit_group_lasso would do nothing", "'uniform'"]),
    ("train", ["trainer=ddp_cpu", "trainer.devices=99"], ["trainer.devices=99", "fits", "oversubscribe=true"]),
    ("train", ["trainer.accelerator=tpu", "trainer.devices=2"], ["trainer.accelerator=tpu"]),
    ("train", ["trainer.limit_train_batches=1e-9"], ["trainer.limit_train_batches=1e-09 leaves none"]),
    ("train", ["data=image_folder", "data.root=DIR/one", "data.val_split=2"], ["1 class"]),
    *[("evaluate", [f"run={value}"], ["run must be a path"]) for value in ("null", "3", "[a]")],
    *[("report", [f"runs={value}"], ["runs must be a path or a list of paths"]) for value in ("null", "3", "[]")],
    ("report", ["runs=DIR", "out=3"], ["out must be a path or null"]),
    ("evaluate", [], ["run"]),
    ("export", ["run=DIR", "out=[a]"], ["out must be a path or null"]),
    ("export", ["run=DIR", "images=2.5"], ["images must be a whole number"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("command", "arguments", "expected"), COMMANDS, ids=[f"{c} {' '.join(a)}"[:60] for c, a, _ in COMMANDS]
)
def test_a_command_ends_with_one_message(
    command: str, arguments: Sequence[str], expected: Sequence[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (tmp_path / "file").touch()
    (tmp_path / "begun" / ".hydra").mkdir(parents=True)
    for part in ("train", "val"):
        (tmp_path / "one" / part / "class").mkdir(parents=True)
        for name in "abcdef":
            Image.new("RGB", (8, 8)).save(tmp_path / "one" / part / "class" / f"{name}.png")
    arguments = [each.replace("DIR", str(tmp_path)) for each in arguments]
    if command == "train":
        where = [] if any(each.startswith(("hydra.run.dir", "resume")) for each in arguments) else ["hydra.run.dir=run"]
        small = ["experiment=quickstart", "logger=none"] if "resume" not in arguments[0] else []
        arguments = [*small, *where, *arguments]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [command, *arguments])
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    with pytest.raises(SystemExit) as ended:
        import_module(f"bsq_lightning.{command}").main()
    printed = "".join(capsys.readouterr())
    output = printed + str(ended.value.code)
    assert ended.value.code not in (0, None) and "Traceback" not in printed
    for words in expected:
        assert words.replace("DIR", str(tmp_path)) in output, output


#: Lists of points and summaries of another shape: what stands in the file.
SHAPES = [
    "{}",
    '{"points": [1]}',
    '{"points": {"a": "b"}}',
    '{"points": {"a": [1]}}',
    "[]",
    "no json",
    '{"points": null}',
]


@pytest.mark.parametrize("content", SHAPES)
def test_lists_of_points_and_summaries_of_another_shape_are_named(content: str, tmp_path: Path) -> None:
    for name, read in (
        ("sweep.json", SweepFolder(tmp_path).points), ("summary.json", RunFolder(tmp_path).summary),
    ):  # fmt: skip
        (tmp_path / name).write_text(content)
        with pytest.raises(ValueError, match=name):
            read()


def test_a_stage_has_the_settings_that_are_read() -> None:
    read = set(StageSettings.__dataclass_fields__) - {"name", "quantizer"}
    assert set(Stage.model_fields) == read
