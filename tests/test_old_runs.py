"""Run folders of earlier versions go on, are evaluated and reported; ``old_runs/`` holds one that stopped half way.

``old_runs/0.1`` was written by version 0.1, in which the stages were fixed: it stopped after its bits stage.
"""

import csv
import json
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from bsq_lightning.cli.config import read_config
from bsq_lightning.identity import FREE, upgraded
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import run
from tests.test_conf import composed

OLD = Path(__file__).parent / "old_runs" / "0.1"
#: What it was started with.
COMMAND = [
    "experiment=quickstart", "model._target_=bsq_lightning.models.VGGCifar", "~model.shortcut", "~model.shortcuts",
    "~model.float_activations", "quant.skip=[]", "quant.float_activations=[]", "data.limit_train=256",
    "data.batch_size=64", "reg.alpha=1", "stages.float.epochs=1", "stages.bits.epochs=2",
    "stages.bits.adjust_every_n_epochs=1", "stages.finetune.epochs=1", "logger=none", "+model.stages=[[8],[8]]",
    "trainer.gradient_clip_val=null",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = RunFolder(tmp_path_factory.mktemp("old") / "run")
    shutil.copytree(OLD, folder.path)
    code, output = run("train", f"resume={folder.path}")
    assert code == 0 and "stage finetune starts" in output and "stage bits starts" not in output, output
    return folder


def test_it_is_finished_with_the_bits_it_had_found(folder: RunFolder) -> None:
    summary = folder.summary()
    before = {layer["name"]: layer["precision"] for layer in json.loads((OLD / "scheme.json").read_text())["layers"]}
    assert summary["scheme"] == before and len(set(before.values())) > 1
    assert summary["method"] == {"name": "bit planes", "knob": "reg.alpha", "baseline": False}
    assert (
        summary["accuracy"]["before_finetune"]["test/acc"]
        == json.loads((OLD / "stages.json").read_text())["bits"]["test/acc"]
    )
    assert [row["stage"] for row in folder.metrics()] == ["float", "bits", "bits", "finetune"]
    assert len(folder.adjustments()) == 2


def test_the_command_that_began_it_finds_it_the_same_run(folder: RunFolder) -> None:
    code, output = run("train", *COMMAND, f"hydra.run.dir={folder.path}")
    assert code == 0 and "run folder" in output, output
    code, output = run("train", *COMMAND, "quant.max_precision=7", f"hydra.run.dir={folder.path}")
    assert code == 1 and "quant.max_precision: 8 there, 7 now" in output, output


def test_it_is_evaluated_and_reported(folder: RunFolder) -> None:
    code, output = run("evaluate", f"run={folder.path}")
    assert code == 0 and f"test accuracy {folder.summary()['accuracy']['final']['test/acc']!r}" in output, output
    code, output = run("report", f"runs={folder.path}")
    assert code == 0, output
    (row,) = csv.DictReader((folder.path / "report" / "settings.csv").open())
    assert row["setting"] == "bit planes, alpha 1"


@pytest.mark.parametrize("quant", ["bsq", "bsq_rewind", "bsq_reference", "uniform"])
def test_a_config_is_read_as_todays(quant: str) -> None:
    """0.1 had BSQ's keys in every method; what is left of them is what today's files compose."""
    now = composed(f"quant={quant}", "reg.alpha=1")
    old = yaml.safe_load((OLD / "config.yaml").read_text())["quant"]
    ends = {"first_last_precision": 8, "precision": 4} if quant == "uniform" else {}
    accidents = quant == "bsq_reference"
    latent = {"_target_": "bsq_lightning.quantizers.LatentQuantizer", "_partial_": True, "units": "scale"}
    planes = {**old["bits"], "clip_always": True, "min_precision": 1} if accidents else old["bits"]
    old |= ends | {
        "skip": list(now.quant.skip), "float_activations": list(now.quant.float_activations),
        "bits": None if quant == "uniform" else planes,
        "finetune": latent if quant in ("bsq", "bsq_reference") else {**latent, "units": "weight", "step": "mse"},
        "rewind": quant == "bsq_rewind",
        "lose_biases": accidents,
        "quantized_biases": ["fc"] if accidents else [],
        "calibration_batches": 0 if accidents else 10,
        "clamped": ["net.*.downsample.*", "activation_quantizers.*.alpha"] if accidents else [],
    }  # fmt: skip

    free = [key.removeprefix("quant.") for key in FREE]  # what today's files say beside, and no run is known by
    today = {key: value for key, value in OmegaConf.to_container(now.quant, resolve=True).items() if key not in free}
    assert upgraded({"quant": old, "stages": {}})["quant"] == today


def test_todays_config_is_left_alone() -> None:

    config = OmegaConf.to_container(composed(), resolve=True)
    assert upgraded(config) is config
    assert "stages" in read_config(OLD / "config.yaml").quant
