"""Every method through the commands: the whole run, killed and resumed, and on two ranks."""

import json
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from bsq_lightning.cards import Card
from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.cli.building.checks import check_settings
from bsq_lightning.cli.building.networks import build_module, first_network, next_network
from bsq_lightning.cli.building.stage import planned_stages, stage_settings
from bsq_lightning.cli.building.trainers import build_callbacks
from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.quantized_tensor import load_state
from tests.cli.commands import TINY, run
from tests.cli.test_resume import kill_when, rows, same_state

#: What makes each method's run short, and the stages in which it is killed.
METHODS: dict[str, tuple[list[str], list[str]]] = {
    "csq": (["reg=csq_budget", "reg.alpha=1", "quant.stages.soft.epochs=3"], ["soft", "hard"]),
    "cpq": (["reg=dropbits_l0", "reg.alpha=30", "stages.bits.epochs=3"], ["drop", "fixed"]),
    "fixed_point": (["reg=bitslice_l1", "reg.alpha=1", "stages.bits.epochs=2"], ["l1", "slices"]),
    "lsq": (
        [
            "reg=none",
            "quant.precision=1",
            "freeze=oscillating",
            "freeze.momentum=0.2",
            "freeze.start=0.3",
            "average=ema",
        ],
        ["finetune"],
    ),
    "msq": (  # the target is met at the first adjustment, and what resumes then is beyond it
        [
            "reg=msq_lsb",
            "quant.precision=4",
            "quant.threshold=1.0",
            "reg.target_compression=10",
            "reg.alpha=1e-3",
            "stages.bits.adjust_every_n_epochs=1",
            "stages.bits.epochs=3",
        ],
        ["bits", "finetune"],
    ),
    "water_filling": (
        ["reg=none", "mix=cutmix", "distill=float", "quant.exchanges=4", "quant.until=0.8", "quant.mean_bits=3"],
        ["finetune"],
    ),
    "water_filling_filters": (
        ["reg=none", "quant.exchanges=4", "quant.until=0.8", "quant.precision=2", "quant.mean_bits=1.25"],
        ["finetune"],
    ),
}
EACH = pytest.mark.parametrize("method", METHODS)


def arguments(method: str, folder: Path) -> list[str]:
    return [*TINY, f"quant={method}", "stages.finetune.epochs=2", *METHODS[method][0], f"hydra.run.dir={folder}"]


@EACH
def test_every_stage_is_built_and_makes_a_step(method: str, tmp_path: Path) -> None:
    given = [each for each in TINY if not each.startswith("logger")]
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        cfg = compose("train", overrides=[*given, f"quant={method}", *METHODS[method][0]])
    check_settings(cfg)
    network = first_network(cfg, "float", 10, restored=False)
    planned = planned_stages(cfg)
    assert set(METHODS[method][1]) < set(planned)
    for stage in planned[1:]:
        network = next_network(cfg, network, stage, 10, None)
        module = build_module(cfg, network, stage, 10)
        if stage_settings(cfg, stage).epochs is None:
            continue
        optimizer = module.configure_optimizers()["optimizer"]
        network.on_epoch(0.5)
        network.write_training_weights_(torch.Generator())
        network(torch.randn(4, 3, 16, 16)).square().mean().backward()
        before = [parameter.detach().clone() for parameter in network.parameters()]
        optimizer.step()
        network.write_training_weights_(torch.Generator())
        assert any(not torch.equal(old, new) for old, new in zip(before, network.parameters(), strict=True))
        network.check_weights()


def test_what_acts_in_the_last_stage_acts_in_the_last_that_trains(tmp_path: Path) -> None:
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        cfg = compose("train", overrides=["experiment=methods_short_cpq", "freeze=oscillating", "average=ema"])
    assert planned_stages(cfg)[-1] == "drop"
    kinds = {type(callback).__name__ for callback in build_callbacks(cfg, tmp_path, "drop")}
    assert {"OscillationFreezing", "FloatAverage"} <= kinds


@pytest.mark.slow
@EACH
def test_killed_and_resumed_it_ends_bit_for_bit_alike(method: str, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    code, output = run("train", *arguments(method, whole))
    assert code == 0, output
    first, *others = METHODS[method][1]
    assert kill_when(killed, first, 0, *arguments(method, killed))
    for stage in others:
        kill_when(killed, stage, 0, f"resume={killed}")
    code, output = run("train", f"resume={killed}")
    assert code == 0, output
    a, b = (load_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"] for folder in (whole, killed))
    same_state(a, b)
    assert rows(whole) == rows(killed)
    assert (whole / "scheme.json").read_text() == (killed / "scheme.json").read_text()
    accuracies = [json.loads((folder / "summary.json").read_text())["accuracy"] for folder in (whole, killed)]
    assert accuracies[0] == accuracies[1]
    assert not Card.load(whole).differences(Card.load(killed)).keys() - {"compute.hours"}
    net = {key.removeprefix("network.net."): value for key, value in a.items()}
    for name, tensor in load_state(whole / "quantized.safetensors").tensors.items():
        assert torch.equal(tensor.dequantize(), net[f"{name}.weight"]), name
    code, output = run("evaluate", f"run={whole}")
    assert code == 0 and f"test accuracy {accuracies[0]['final']['test/acc']!r}" in output, output


@pytest.mark.slow
@EACH
def test_two_ranks_agree(method: str, tmp_path: Path) -> None:
    """The callback that compares them ends a run where they do not."""
    code, output = run("train", *arguments(method, tmp_path / "run"), "trainer=ddp_cpu", "data.batch_size=32")
    assert code == 0, output
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["devices"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("method", [method for method, (given, _) in METHODS.items() if "reg=none" not in given])
def test_another_methods_regularizer_is_refused_and_its_own_named(method: str, tmp_path: Path) -> None:
    # settings of its own regularizer would be refused before the pair is looked at
    given = [each for each in arguments(method, tmp_path / "run") if not each.startswith("reg.")]
    code, output = run("train", *given, "reg=bit_group_lasso")
    own = next(each.removeprefix("reg=") for each in METHODS[method][0] if each.startswith("reg="))
    assert code == 1 and f"use reg={own}" in output, output
