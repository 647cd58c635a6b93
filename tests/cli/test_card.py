"""``card`` as a command: what a run leaves is what is computed again, and a change after the run does not go unseen."""

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from bsq_lightning.card import main
from bsq_lightning.cards import Card
from bsq_lightning.cli.run.card import sha256_of_float
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY, InProcess, in_process, run

UNIFORM = [*(o for o in TINY if "reg.alpha" not in o and "stages.bits" not in o), "quant=uniform"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "trained"
    code, output = run("train", *UNIFORM, "quant.precision=3", "stages.finetune.epochs=1", f"hydra.run.dir={folder}")
    assert code == 0 and "no quantization card" not in output, output
    return folder


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return in_process(main, monkeypatch, capsys)


def test_a_run_leaves_the_card_that_its_weights_give_again(trained: Path, tmp_path: Path, command: InProcess) -> None:
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    left = Card.load(folder)
    (folder / "card.yaml").unlink()
    code, output = command(f"run={folder}")
    assert code == 0 and "| weights.bits_per_layer | conv1 8, layer1.0.conv1 3" in output, output
    assert Card.load(folder) == left and left["model.float_weights"]["source"] == "config"
    assert left["generated_from.checkpoint_sha256"] in (folder / "card.md").read_text()
    assert str(trained.parent) not in (trained / "card.yaml").read_text() + (trained / "card.md").read_text()
    code, output = command(f"run={folder}", f"diff={trained / 'card.yaml'}")
    assert code == 0 and output == "the cards agree in every field\n", output


def lie(folder: Path, key: str, value: object) -> None:
    config = yaml.safe_load((folder / "config.yaml").read_text())
    *path, last = key.split(".")
    node = config
    for each in path:
        node = node[each]
    node[last] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "bits": (lambda f: lie(f, "quant.precision", 4), "weights.bits_per_layer: layer1.0.conv1 has 3 bits"),
    "bits of the ends": (lambda f: lie(f, "quant.first_last_precision", 4), "weights.bits_per_layer: conv1 has 8 bits"),
    "the card itself": (
        lambda f: (f / "card.yaml").write_text((f / "card.yaml").read_text().replace("conv1: 8", "conv1: 2")),
        "weights.bits_per_layer.conv1: 2 there, 8 by the weights",
    ),
    "another checkpoint of this run": (
        lambda f: shutil.copy(f / "checkpoints" / "previous.ckpt", f / "checkpoints" / "last.ckpt"), "checkpoint"
    ),
    "no quantized weights": (lambda f: (f / "quantized.safetensors").unlink(), "quantized.safetensors"),
    "a broken card": (lambda f: (f / "card.yaml").write_text("card_version: 1"), "is not a quantization card"),
    "no summary": (lambda f: (f / "summary.json").unlink(), "is not finished"),
}  # fmt: skip


@pytest.mark.parametrize("what", CHANGES)
def test_what_was_changed_after_the_run_is_named(what: str, trained: Path, tmp_path: Path, command: InProcess) -> None:
    change, said = CHANGES[what]
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    change(folder)
    code, output = command(f"run={folder}")
    assert code == 1 and said in output and "Traceback" not in output, output


def test_float_weights_are_told_by_name_and_hash_also_when_they_are_gone(trained: Path, tmp_path: Path) -> None:
    file, folder = tmp_path / "float.ckpt", RunFolder(tmp_path)
    file.write_bytes(b"weights")
    config = {"model": {"weights": str(file)}}
    known = sha256_of_float(config, folder)
    assert known == hashlib.sha256(b"weights").hexdigest()
    card = Card.load(trained)
    section = {**card.sections["generated_from"], "float_weights_sha256": known}
    folder.card_file.write_text(Card({**card.sections, "generated_from": section}).to_yaml())
    file.unlink()
    assert sha256_of_float(config, folder) == known
    folder.card_file.unlink()
    assert sha256_of_float(config, folder) == "unknown"
    assert sha256_of_float({"model": {"weights": "IMAGENET1K_V1"}}, folder) == "n/a"
    assert card["generated_from.float_weights_sha256"] == "n/a"
