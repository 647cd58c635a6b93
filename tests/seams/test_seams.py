"""Methods from outside the package, each one file and one YAML on Hydra's search path, through every command.

Nothing in the package knows them. Where one of these needs an edit in ``src/``, a seam is missing.
"""

import csv
import json
from pathlib import Path

import pytest
import torch

from bsq_lightning.cards import Card
from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.quantized_tensor import load_state
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY, run
from tests.cli.test_resume import kill_when, rows, same_state

HERE = Path(__file__).parent
COMMON = ["--config-dir", str(HERE / "conf"), *(o for o in TINY if "stages.bits" not in o and "reg.alpha" not in o)]
#: What to ask for, the stages that follow the float stage, the epoch to kill in, the knob and two of its values.
METHODS = {
    "toy_soft": (["quant=toy_soft", "reg=none"], ["soft"], ("soft", 0), "quant.precision=3,5"),
    "toy_weights": (
        ["reg=toy_weights", "stages.bits.epochs=2", "stages.bits.adjust_every_n_epochs=1", "stages.finetune.epochs=1"],
        ["bits", "finetune"], ("bits", 0), "reg.alpha=0.05,0.2",
    ),
    "toy_two_stages": (
        ["quant=toy_two_stages", "reg=none"], ["dropping", "settled"], ("settled", 0), "quant.drop=1,2"
    ),
    "toy_rounded": (["quant=toy_rounded", "reg=none"], ["rounded"], ("float", 0), "quant.precision=3,5"),
}  # fmt: skip


@pytest.fixture(autouse=True)
def outside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HERE / "outside"), prepend=":")


def train(*arguments: str) -> None:
    code, output = run("train", *arguments)
    assert code == 0, output


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_a_method_from_outside_has_everything(name: str, tmp_path: Path) -> None:
    asked, stages, kill, knob = METHODS[name]
    whole = RunFolder(tmp_path / "whole")
    train(*COMMON, *asked, f"hydra.run.dir={whole.path}")

    summary = whole.summary()
    assert summary["stages"] == ["float", *stages] and summary["method"]["name"]
    weights = load_checkpoint(whole.last)["state_dict"]
    state = load_state(whole.quantized_file)
    for layer, tensor in state.tensors.items():
        assert torch.equal(tensor.dequantize(), weights[f"network.net.{layer}.weight"]), layer
    assert summary["sizes"] == state.scheme().sizes()
    assert Card.load(whole.path)["weights.bits_mean_param_weighted"] == state.scheme().mean_precision
    assert whole.end_of("float").exists() and all(whole.end_of(stage).exists() for stage in stages[:-1])

    killed = tmp_path / "killed"
    assert kill_when(killed, *kill, *COMMON, *asked, f"hydra.run.dir={killed}")
    train(f"resume={killed}", f"trust=[{name}]")
    same_state(weights, load_checkpoint(RunFolder(killed).last)["state_dict"])
    assert rows(whole.path) == rows(killed)

    code, output = run("evaluate", f"run={whole.path}", f"trust=[{name}]")
    assert code == 0 and f"test accuracy {summary['accuracy']['final']['test/acc']!r}" in output, output

    sweep = tmp_path / "sweep"
    train("-m", *COMMON, *asked, knob, f"hydra.sweep.dir={sweep}", "hydra.launcher.slots=2")
    code, output = run("report", f"runs={sweep}")
    assert code == 0, output
    table = list(csv.DictReader((sweep / "report" / "settings.csv").open()))
    key, values = knob.split("=")
    labels = {row["setting"] for row in table}
    assert len(labels) == 2 and all(any(value in label for label in labels) for value in values.split(",")), labels


def test_what_the_toys_cover() -> None:
    """The seams that these methods go through, so that a row that is made simpler is noticed."""
    files = {path.stem: path.read_text() for path in (HERE / "outside").glob("*.py")}
    assert set(files) == set(METHODS)
    assert "def on_epoch" in files["toy_soft"] and "lr_factor" in files["toy_soft"] and "exact" in files["toy_soft"]
    assert "on_weights = True" in files["toy_weights"]
    assert "may_move" in files["toy_two_stages"] and "at_start" in (HERE / "conf/quant/toy_two_stages.yaml").read_text()
    assert "epochs: null" in (HERE / "conf/quant/toy_rounded.yaml").read_text()
    assert all("bsq_lightning" in text for text in files.values())
    assert not json.dumps(files).count("subprocess")
