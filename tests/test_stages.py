"""Stages as data: what a method's file and a file of stages say together, and what is refused; no training."""

from functools import partial

import pytest
import torch
from omegaconf import OmegaConf

from bsq_lightning.callbacks import PrecisionAdjustment
from bsq_lightning.cli.building.networks import build_network, next_network
from bsq_lightning.cli.building.stage import planned_stages, searched_stage, stage_settings
from bsq_lightning.cli.building.trainers import build_callbacks
from bsq_lightning.identity import upgraded
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.streams import stage_seed
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer
from bsq_lightning.scheme import LayerScheme, Scheme
from tests.helpers import TinyNet
from tests.test_conf import composed


def two_stages(**schedule: object) -> OmegaConf:
    """A config of two stages, the first with a schedule of its own and one in ``stages``."""
    cfg = composed("quant=uniform", "reg=none", "experiment=quickstart")
    OmegaConf.set_struct(cfg, False)
    own = {"epochs": 3, "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1, "momentum": 0.9}}
    cfg.quant.stages = {"soft": own, "hard": {"epochs": None}}
    cfg.quant.soft, cfg.quant.hard = cfg.quant.finetune, None
    cfg.stages.soft = schedule
    return cfg


def test_a_schedule_replaces_a_methods_own_part_by_part() -> None:
    settings = stage_settings(two_stages(epochs=5, optimizer={"lr": 0.01}), "soft")
    assert settings.epochs == 5
    assert dict(settings.optimizer) == {
        "_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.01, "momentum": 0.9
    }  # fmt: skip
    other = {"_target_": "torch.optim.Adam", "_partial_": True}
    assert dict(stage_settings(two_stages(optimizer=other), "soft").optimizer) == other


def test_the_list_is_the_methods_behind_the_float_stage() -> None:
    cfg = two_stages()
    assert planned_stages(cfg) == ["float", "soft", "hard"]
    assert searched_stage(cfg) is None
    assert searched_stage(composed()) == "bits"
    cfg.stages.soft = {"epochs": 0}
    assert planned_stages(cfg) == ["float", "hard"]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        ({"quantizer": {}, "epochs": None}, "soft.quantizer is unknown.*the quantizer of this stage is quant.soft"),
        ({"epochs": 1, "optimizer": {}, "epoch": 2}, "has epochs, but no optimizer"),
        ({}, "stage soft has no epochs"),
        ({"epochs": None, "at_stat": 1}, "quant.stages.soft.at_stat is unknown"),
    ],
)  # fmt: skip
def test_what_a_stage_cannot_be_is_said(stage: dict, said: str) -> None:
    cfg = two_stages()
    cfg.quant.stages = {"soft": stage}
    with pytest.raises(ValueError, match=said):
        stage_settings(cfg, "soft")


def test_a_stage_without_quantizers_goes_on_with_those_before_it() -> None:
    cfg = two_stages()
    network = build_network(cfg, TinyNet(), "hard")
    assert {type(quantizer).__name__ for _, _, quantizer in network.quantizers()} == {"LatentQuantizer"}
    before = [quantizer for _, _, quantizer in network.quantizers()]
    after = [quantizer for _, _, quantizer in next_network(cfg, network, "hard", 5, None).quantizers()]
    assert all(one is other for one, other in zip(before, after, strict=True))


def test_a_quantizer_that_cannot_follow_another_is_said() -> None:
    network = QuantizedNetwork(TinyNet(), BitPlaneQuantizer)
    with pytest.raises(ValueError, match="layer conv1: the quantizer of this stage cannot begin"):
        network.fix_scheme_(lambda tensor, precision: LatentQuantizer(tensor, precision))


def test_an_interval_of_ones_own_is_for_stages_that_adjust(tmp_path) -> None:
    cfg = composed("callbacks.precision_adjustment.every_n_epochs=3")
    intervals = {
        stage: callback.every_n_epochs
        for stage in ("float", "bits", "finetune")
        for callback in build_callbacks(cfg, tmp_path, stage)
        if isinstance(callback, PrecisionAdjustment)
    }
    assert intervals == {"float": None, "bits": 3, "finetune": None}


def test_a_float_run_of_an_earlier_version_is_todays() -> None:
    old = {"quant": {}, "stages": {"bits": {"adjust_every_n_epochs": 100}},
           "callbacks": {"precision_adjustment": {"every_n_epochs": 100}}}  # fmt: skip
    assert upgraded(old)["callbacks"]["precision_adjustment"]["every_n_epochs"] is None


def test_stages_share_no_random_numbers() -> None:
    seeds = [stage_seed(seed, stage) for seed in range(50) for stage in ("float", "bits", "finetune", "soft", "hard")]
    assert len(set(seeds)) == len(seeds) and max(seeds) < 2**32


@pytest.mark.parametrize("saved", [True, False])
def test_whether_steps_are_per_channel_is_the_checkpoints_to_say(saved: bool) -> None:
    build = partial(LatentQuantizer, step="mse", units="weight")
    weight = torch.randn(4, 3, 2)
    one, other = build(weight, 3, per_channel=saved), build(weight, 3, per_channel=not saved)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other.weight(), one.weight()) and other.scale.shape == one.scale.shape


def test_what_stays_at_zero_bits_is_counted_with_steps_per_channel() -> None:
    scheme = Scheme((LayerScheme("conv", 100, 3, 0.1, stored=(300, 400, 320)),), float_parameters=2)
    assert scheme.at(0).bits("model") == 320 + 64 and scheme.at(2).bits("paper") == 200
