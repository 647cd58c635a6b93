"""What a user gets for a mistake: one message with cause and remedy, before training, and nothing written over."""

import io
import os
import pickle
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.train import main
from tests.cli.commands import TINY, run

CASES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "negative alpha": (["reg.alpha=-1"], ["reg.alpha must be a number that is not negative", "-1"]),
    "alpha that is no number": (["reg.alpha=strong"], ["reg.alpha must be a number", "'strong'"]),
    "precision too large": (["quant.precision=17", "quant.max_precision=17"], ["from 1 to 16", "17"]),
    "precision not whole": (["quant.precision=2.5"], ["quant.precision must be a whole number of bits", "2.5"]),
    "unknown override": (["reg.alhpa=1"], ["Could not override 'reg.alhpa'"]),
    "pattern that matches nothing": (["quant.skip=[no]"], ["quant.skip: the pattern 'no' matches nothing", "conv1"]),
    "missing data": (["data=cifar10", "data.root=/nonexistent", "data.download=false"], ["data.root", "data=digits"]),
    "missing weights": (["model.weights=/nonexistent.pt"], ["/nonexistent.pt"]),
    "missing scheme": (["quant=from_scheme", "reg=none", "scheme=/no.json"], ["no scheme file at /no.json"]),
    "unwritable folder": (["hydra.run.dir=/proc/run"], ["/proc/run"]),
    "bf16-true": (["trainer.precision=bf16-true"], ["bf16-mixed", "silently"]),
    "spawned processes": (["trainer.devices=2", "trainer.strategy=ddp_spawn"], ["use trainer=ddp"]),
    "no validation batches": (["trainer.limit_val_batches=0"], ["limit_val_batches must be", "data.val_split=0"]),
    "preflight": (["preflight=onyl"], ["preflight must be run or only"]),
    "scheme for another method": (["scheme=some.json"], ["takes no scheme", "quant=from_scheme"]),
    "the wrong penalty": (["quant=msq"], ["needs bit planes", "use reg=msq_lsb"]),
    "MSQ's penalty for planes": (["reg=msq_lsb"], ["needs the codes of quant=msq", "use reg=bit_group_lasso"]),
    "a target that is met": (["quant=msq", "reg=msq_lsb", "reg.target_compression=4"], ["is met before any training"]),
    "from_scheme without a scheme": (["quant=from_scheme", "reg=none"], ["needs scheme=FILE"]),
    "zero bits": (["quant=uniform", "reg=none", "quant.precision=0"], ["quant.precision must be a whole number"]),
    "no checkpoints": (["callbacks.checkpoint=null"], ["callbacks.checkpoint cannot be removed"]),
    "fsdp": (["trainer.strategy=fsdp"], ["trainer.strategy=fsdp", "use ddp"]),
    "averaging": (
        ["+callbacks.swa={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 0.1}"],
        ["StochasticWeightAveraging writes weights of its own"],
    ),
    "adam for planes": (
        ["stages.bits.optimizer._target_=torch.optim.Adam", "~stages.bits.optimizer.momentum"],
        ["trained by plain SGD"],
    ),
    "interval": (["stages.bits.adjust_every_n_epochs=0"], ["adjust_every_n_epochs must be a whole number from 1 on"]),
    "fewer outputs than classes": (["+model.num_classes=5"], ["5 outputs", "10 classes", "num_classes"]),
    "nothing to do": (["quant=none", "stages.float.epochs=0"], ["no stage has epochs"]),
    "more exchanges than steps": (
        ["quant=water_filling", "reg=none", "quant.exchanges=3000"], ["hold no 3000 exchanges", "lower quant.exchanges"]
    ),
    "clamp reversed": (
        ["quant=bsq_reference", "quant.stages.bits.after_step.low=3"], ["low=3 is above high=2"]
    ),
    "wrong target": (["model._target_=no.such.Net"], ["no.such.Net"]),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "expected"), CASES.values(), ids=CASES.keys())
def test_one_message_before_training(
    overrides: Sequence[str],
    expected: Sequence[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    where = [] if any(o.startswith("hydra.run.dir") for o in overrides) else [f"hydra.run.dir={tmp_path / 'run'}"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["train", *TINY, *where, *overrides])
    with pytest.raises(SystemExit) as ended:
        main()
    output = "".join(capsys.readouterr())
    assert ended.value.code == 1, output
    for part in expected:
        assert part in output, output
    assert "starts at epoch" not in output
    assert not (tmp_path / "run" / "metrics.csv").exists()


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("what", ["hostile", "truncated", "foreign"])
def test_checkpoints_are_read_without_running_them(what: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "last.ckpt", tmp_path / "payload ran"
    buffer = io.BytesIO()
    torch.save({"state_dict": {"a": torch.ones(100)}, "stage": "bits", "epoch": 0}, buffer)
    if what == "hostile":
        path.write_bytes(pickle.dumps(Payload(marker)))
        with pytest.raises(ValueError, match="executed"):
            load_checkpoint(path)
        torch.save({"stage": Payload(marker)}, path)
    elif what == "truncated":
        path.write_bytes(buffer.getvalue()[:-200])
    else:
        torch.save({"a": torch.ones(3)}, path)
    with pytest.raises(ValueError, match="last.ckpt"):
        load_checkpoint(path)
    assert not marker.exists()


def test_a_loss_that_becomes_nan_stops_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    bad = ["stages.float.epochs=3", "stages.float.scheduler=null", "stages.float.optimizer.lr=1e30"]
    code, output = run("train", *TINY, *bad, f"hydra.run.dir={folder}")
    assert code != 0
    assert "the loss became NaN or infinite at step" in output
    assert not (folder / "checkpoints" / "last.ckpt").exists()


def test_evaluate_without_a_run() -> None:
    code, output = run("evaluate")
    assert code == 1 and "run" in output and "Traceback" not in output, output


def test_resume_from_another_architecture_and_from_a_damaged_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = run("train", *TINY, "quant=none", f"hydra.run.dir={folder}")
    assert code == 0, output
    assert not (folder / "card.yaml").exists()  # nothing is quantized
    (folder / "summary.json").unlink()  # as if it had been killed at the very end
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("depth: 8", "depth: 14"))
    code, output = run("train", f"resume={folder}")
    assert code == 1 and "is from another architecture" in output, output
    last = folder / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:1000])
    code, output = run("train", f"resume={folder}")
    assert code == 1 and "cannot be read as a checkpoint" in output, output
