"""Configs are code: every file composes, every target exists, every network and schedule can be built."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from torchvision.models import get_model_weights

from bsq_lightning.cli.building.checks import check_settings
from bsq_lightning.cli.building.networks import build_module, build_net, build_network
from bsq_lightning.cli.building.stage import planned_stages
from bsq_lightning.cli.building.trainers import build_callbacks
from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.module import measuring

FILES = sorted(
    (path.parent.name, path.stem)
    for path in Path(CONF_DIR).glob("*/*.yaml")
    if path.parent.name != "hydra" and path.stem not in ("timm", "custom")
)


#: Groups that are not train's, by the command that has them.
OF_OTHERS = {"export": ("export", "run=FOLDER"), "sensitivity": ("allocate",), "ptq": ("ptq",)}


def composed(*overrides: str, command: str = "train") -> DictConfig:
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return compose(command, overrides=list(overrides))


def targets(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["_target_"]] if "_target_" in node else []
        return own + [target for value in node.values() for target in targets(value)]
    return [target for value in node for target in targets(value)] if isinstance(node, list) else []


@pytest.mark.parametrize(("group", "name"), FILES, ids=["=".join(pair) for pair in FILES])
def test_every_file_composes_and_its_targets_exist(group: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BSQ_DATA", raising=False)
    command, *more = OF_OTHERS.get(group, ("train",))
    cfg = composed(f"{group}={name}", *more, command=command)
    for target in targets(OmegaConf.to_container(cfg, resolve=True)):
        if "TensorBoard" not in target:
            get_object(target)


@pytest.mark.parametrize("name", ["resnet20", "resnet32", "resnet44", "resnet56", "resnet110", "vgg19_bn", "resnet18",
                                  "resnet50", "mobilenet_v2", "inception_v3"])  # fmt: skip
def test_every_model_is_built_and_quantized_with_its_default_patterns(name: str) -> None:
    cfg = composed(f"model={name}")
    with torch.device("meta"):
        net = build_net(cfg, num_classes=10)
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    sizes = {n: p.numel() for n, p in net.named_parameters()}
    assert sum(sizes.values()) > 200_000
    if name in ("resnet20", "vgg19_bn", "resnet18"):
        network = build_network(cfg, build_net(cfg, num_classes=10), "bits")
        assert network.scheme().mean_precision == 8


def test_shortcut_a_has_no_shortcut_layers_to_skip() -> None:
    cfg = composed("model.shortcut=A")
    assert build_network(cfg, build_net(cfg, num_classes=10), "bits").scheme().size == 268_336


def test_timm_models_by_name() -> None:
    pytest.importorskip("timm")
    cfg = composed("model=timm", "model.model_name=resnet10t", "quant.act_precision=0")
    network = build_network(cfg, build_net(cfg, num_classes=7), "bits")
    assert network(torch.randn(1, 3, 64, 64)).shape == (1, 7)


def test_a_users_own_class() -> None:
    cfg = composed("model=custom", "model._target_=bsq_lightning.models.ResNetCifar", "+model.depth=8")
    assert build_network(cfg, build_net(cfg, num_classes=3), "bits").scheme().size > 0


@pytest.mark.parametrize(
    "quant", ["bsq", "bsq_reference", "bsq_rewind", "uniform", "lsq", "lsq_act", "dorefa", "pact", "msq", "swis"]
)
def test_every_stage_of_every_method_is_built(quant: str, tmp_path: Path) -> None:
    cfg = composed(f"quant={quant}", "experiment=quickstart", *(["reg=msq_lsb"] if quant == "msq" else []))
    planned = planned_stages(cfg)
    adjusted = quant.startswith("bsq") or quant == "msq"
    assert planned == (["float", "bits", "finetune"] if adjusted else ["float", "finetune"])
    for stage in planned:
        callbacks = build_callbacks(cfg, tmp_path, stage)
        measured = ["BatchStatistics"] if stage == "bits" and quant in ("bsq", "bsq_rewind") else []
        assert [type(c).__name__ for c in callbacks] == measured + [
            "PrecisionAdjustment", "RankAgreement", "RangeCalibration", "SkippedImages", "RunRecorder", "EpochLine",
            "Preemption", "ModelCheckpoint",
        ]  # fmt: skip
        assert callbacks[len(measured)].every_n_epochs == (6 if stage == "bits" else None)
        network = build_network(cfg, build_net(cfg, num_classes=10), stage)
        module = build_module(cfg, network, stage, 10)
        assert module.configure_optimizers()


def test_uniform_is_8_bits_at_both_ends() -> None:
    cfg = composed("quant=uniform", "quant.precision=2")
    precisions = build_network(cfg, build_net(cfg, num_classes=10), "finetune").scheme().precisions()
    assert precisions.pop("conv1") == precisions.pop("fc") == 8
    assert set(precisions.values()) == {2}


def test_none_files_are_empty() -> None:
    for path in Path(CONF_DIR).glob("*/none.yaml"):
        assert not path.read_text().strip()


SWEEPS = sorted((Path(CONF_DIR).parent / "sweeps").glob("*.yaml"))


@pytest.mark.parametrize("path", SWEEPS, ids=[path.stem for path in SWEEPS])
def test_every_point_of_every_sweep_composes_and_says_what_it_costs(
    path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BSQ_DATA", raising=False)
    text = path.read_text()
    for word in ("# Question:", f"# Command:  make sweep SWEEP={path.stem}", "# Cost:"):
        assert word in text
    assert f"SWEEP={path.stem}\n" in text or f"SWEEP={path.stem} " in text
    params = OmegaConf.load(path).hydra.sweeper.params
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        parser = OverridesParser.create()
        overrides = parser.parse_overrides([f"{key}={value}" for key, value in params.items()])
        for i, override in enumerate(overrides):
            if override.is_interval_sweep():  # of a sweeper that learns: both ends stand for what is between
                ends: Any = override.value()
                overrides[i] = parser.parse_override(f"{override.key_or_group}={ends.start},{ends.end}")
        points = BasicSweeper.split_arguments(overrides, None)[0]
        for point in points:
            cfg = compose("train", overrides=list(point))
            check_settings(cfg)
            assert planned_stages(cfg)
    assert len({tuple(point) for point in points}) == len(points) > 1


RECIPES = sorted(path.stem for path in Path(CONF_DIR).glob("experiment/*_imagenet.yaml"))


@pytest.mark.parametrize("name", RECIPES)
def test_imagenet_recipes_fit_their_weights_and_say_what_to_expect(name: str) -> None:
    text = (Path(CONF_DIR) / "experiment" / f"{name}.yaml").read_text()
    for word in (f"experiment={name} ", "# Command:", "# Schedule:", "# Batch:", "# Cost:", "# Memory:", "# Expect:"):
        assert word in text
    cfg = composed(f"experiment={name}")
    check_settings(cfg)
    assert planned_stages(cfg) == ["bits", "finetune"]
    weights = get_model_weights(cfg.model["_target_"].rsplit(".", 1)[-1])[cfg.model.weights]
    asked = weights.transforms()
    assert (cfg.data.image_size, cfg.data.resize) == (asked.crop_size[0], asked.resize_size[0])
    assert f"({weights.meta['_metrics']['ImageNet-1K']['acc@1']:.2f} %" in text
    assert cfg.data.batch_size * 8 == 256
    for stage in ("bits", "finetune"):
        settings = cfg.stages[stage]
        assert max(settings.scheduler.get("milestones", [0])) < settings.epochs
    assert cfg.stages.bits.epochs % cfg.stages.bits.adjust_every_n_epochs == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_imagenet_recipes_train_a_step(name: str) -> None:
    cfg = composed(f"experiment={name}", "model.weights=null")
    network = build_network(cfg, build_net(cfg, num_classes=1000), "bits")
    module = build_module(cfg, network, "bits", 1000)
    optimizer = module.configure_optimizers()["optimizer"]
    output = module(torch.randn(2, 3, cfg.data.image_size, cfg.data.image_size))
    if "inception" in name:
        assert output.aux_logits.shape == (2, 1000)
        output = output.logits + 0.4 * output.aux_logits
        assert not [layer.name for layer in network.scheme().layers if layer.name.startswith("AuxLogits")]
        with measuring(module):
            assert module(torch.randn(2, 3, 299, 299)).shape == (2, 1000)
    assert output.shape == (2, 1000)
    weights = [parameter.detach().clone() for _, parameter, _ in network.quantizers()]
    torch.nn.functional.cross_entropy(output, torch.tensor([0, 1])).backward()
    optimizer.step()
    changed = [not torch.equal(old, new) for old, (_, new, _) in zip(weights, network.quantizers(), strict=True)]
    assert any(changed) and all(torch.isfinite(parameter).all() for parameter in network.parameters())
