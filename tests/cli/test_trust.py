"""What a stranger's config may name, by the name it would be built from."""

import re
from pathlib import Path
from typing import Any

import pytest

from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.cli.run.resume import resume_arguments
from bsq_lightning.cli.sweep.points import float_command
from bsq_lightning.cli.trust import check_settled, check_targets, own_packages, trusted_packages

CONFIG = Path("run/config.yaml")
#: Parts of all kinds, beside those that the files of conf/ name.
ALLOWED = (
    "torch.optim.Adam", "torch.optim.lr_scheduler.OneCycleLR", "torch.nn.Identity", "torchvision.models.vit_b_16",
    "torchvision.models.resnet.ResNet", "torchmetrics.Accuracy", "datetime.timedelta", "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.EarlyStopping", "lightning.pytorch.loggers.CSVLogger",
    "bsq_lightning.quantizers.bit_plane.BitPlaneQuantizer",
)  # fmt: skip
#: What runs commands, reads code, writes or uploads files; some of it behind a name that begins well.
REFUSED = (
    "os.system", "subprocess.run", "builtins.exec", "shutil.rmtree", "functools.partial", "hydra.utils.get_method",
    "hydra.utils.instantiate", "torch.load", "torch.save", "torch.hub.load", "torch.jit.load",
    "torch.serialization.load",
    "torch.utils.cpp_extension.load_inline", "torch.distributed.init_process_group", "torch.ops.load_library",
    "torch.optim.optimizer.os.system", "torch.optim.lr_scheduler.partial", "torch.nn.Module.load_state_dict",
    "torch.nn.parallel.data_parallel", "torch.nn", "torch.optimism.SGD", "torchvision.datasets.CIFAR10",
    "torchvision.models.get_model", "torchvision.models.Weights", "torchvision.models.load_state_dict_from_url",
    "torchvision.io.write_file", "lightning.LightningModule.load_from_checkpoint", "lightning.pytorch.cli.LightningCLI",
    "lightning.pytorch.callbacks.model_checkpoint.os.remove", "lightning.fabric.utilities.cloud_io._load",
    "bsq_lightning.files.write_whole", "bsq_lightning.cli.sweep.points.run_points", "bsq_lightning.data.cifar.Path",
    "bsq_lightning.checkpoint_io.mend_last", "bsq_lightning.checkpoint_io.copy_whole",
    "mypackage.net", "", "os", "..os", "torch.optim.", "torch.optim.SGD.__init__.__globals__",
)  # fmt: skip


def test_the_parts_of_our_own_configs_are_allowed() -> None:
    others = {"hydra", "export", "sensitivity", "accelerator.yaml"}  # no config of a run has these
    files = [path for path in Path(CONF_DIR).rglob("*.yaml") if others.isdisjoint(path.parts)]
    named = {name for path in files for name in re.findall(r"_target_: ([a-z][\w.]+)", path.read_text())}
    assert len(named) > 20
    for target in (*sorted(named - {"timm.create_model"}), *ALLOWED):
        check_targets({"a": {"_target_": target}}, CONFIG)


@pytest.mark.parametrize("name", ["timm.create_model", "timm.models.resnet18"])
def test_timm_builds_models_and_uploads_none(name: str) -> None:
    pytest.importorskip("timm")
    check_targets({"model": {"_target_": name}}, CONFIG)
    for refused in ("timm.models.push_to_hf_hub", "timm.models.save_for_hf", "timm.utils.CheckpointSaver"):
        with pytest.raises(ValueError, match=refused):
            check_targets({"model": {"_target_": refused}}, CONFIG)


@pytest.mark.parametrize("target", REFUSED)
def test_what_is_no_part_is_refused_by_name(target: str) -> None:
    with pytest.raises(ValueError, match="config.yaml: model._target_ is ") as refused:
        check_targets({"model": {"_target_": target}}, CONFIG)
    assert target in str(refused.value)
    assert f"trust=[{target.partition('.')[0]}]" in str(refused.value)


HIDDEN: dict[str, Any] = {
    "callbacks.x._target_": {"callbacks": {"x": {"_target_": "os.system"}}},
    "trainer.plugins.1._target_": {"trainer": {"_target_": "lightning.Trainer", "plugins": [{}, {"_target_": "os.x"}]}},
    "reg._args_.0._target_": {"reg": {"_target_": "torch.nn.Identity", "_args_": [{"_target_": "os.abort"}]}},
    "o._target_": {"o": {"_target_": "os.system", "_partial_": True}},
    "a.0.0.b._target_": {"a": [[{"b": {"_target_": "os.abort"}}]]},
    "model._target_": {"model": {"_target_": {"_target_": "os.abort"}}},
    "data._target_": {"data": {"_target_": ["os.abort"]}},
}  # fmt: skip


@pytest.mark.parametrize("place", HIDDEN)
def test_no_target_is_hidden_too_deep(place: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"config.yaml: {place} is ")):
        check_targets(HIDDEN[place], CONFIG)


def test_a_package_that_is_trusted_is_allowed_and_no_other() -> None:
    config = {"model": {"_target_": "mypackage.nets.net"}}
    for trust in (["mypackage"], ["mypackage.nets"], ["other", "mypackage"]):
        check_targets(config, CONFIG, trust)
    for trust in ([], ["my"], ["mypackage.net"], ["other"]):
        with pytest.raises(ValueError, match=r"trust=\[mypackage\]"):
            check_targets(config, CONFIG, trust)
    assert trusted_packages("a.b") == ["a.b"] and trusted_packages(None) == []
    for wrong in (["a b"], [1], "*", ["a/b"]):
        with pytest.raises(ValueError, match="no list of packages"):
            trusted_packages(wrong)


def test_a_config_reads_nothing_of_this_environment() -> None:
    with pytest.raises(ValueError, match=r"config.yaml: logger.wandb.notes is .*oc.env"):
        check_settled({"logger": {"wandb": {"notes": "x ${oc.env:HOME}"}}}, CONFIG)


def test_trust_is_the_users_to_say_and_not_the_folders(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("trust: [os]\nseed: 1\n")
    assert "+trust=[]" in resume_arguments([f"resume={tmp_path}"])
    assert "+trust=[a,b]" in resume_arguments([f"resume={tmp_path}", "trust=[a,b]"])


def test_a_sweep_trusts_what_its_points_name(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    config = {"model": {"_target_": "mine.net"}, "optimizer": {"_target_": "torch.optim.SGD"}}
    assert float_command(tmp_path, [], trusted=own_packages(config))[-1] == "trust=[mine]"
