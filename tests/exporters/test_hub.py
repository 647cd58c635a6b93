"""``export_hub``: the folder is what the hub's own classes read, and it loads as its README says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bsq_lightning.cards import Card, build_card
from bsq_lightning.exporters import export_hub, read_packed, simulated
from tests.exporters.pairs import tiny

hub = pytest.importorskip("huggingface_hub")
ARCHITECTURE = {"target": "tests.helpers.TinyNet", "arguments": {}}


def card_of(accuracy: float) -> Card:
    net, state, _ = tiny()
    summary = {"accuracy": {"final": {"test/acc": accuracy}}, "data": {"data": "Toy", "classes": 5, "image_size": 8}}
    return build_card(net, state, summary=summary)


def test_the_hub_reads_what_the_folder_says(tmp_path: Path) -> None:
    net, state, x = tiny()
    card = {"card": card_of(0.75).sections, "architecture": ARCHITECTURE}
    written = export_hub(tmp_path / "model.safetensors", net, state, x, card=card, license="mit")
    assert {path.name for path in tmp_path.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    read = hub.ModelCard.load(tmp_path / "README.md")
    assert (read.data.library_name, read.data.license, read.data.pipeline_tag) == (
        "bsq_lightning",
        "mit",
        "image-classification",
    )
    (result,) = read.data.eval_results
    assert (result.metric_value, result.dataset_name) == (0.75, "Toy, 5 classes, 8 pixels")
    assert f"{written.size:,} bytes" in read.text and "| weights.bits_per_layer | conv1 3" in read.text
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["architecture"] == ARCHITECTURE and config["image_size"] == 8
    assert config["bits"] == {name: tensor.precision for name, tensor in state.tensors.items()}


def test_a_network_that_was_not_tested_claims_no_accuracy(tmp_path: Path) -> None:
    net, state, x = tiny()
    export_hub(tmp_path / "model.safetensors", net, state, x)
    read = hub.ModelCard.load(tmp_path / "README.md")
    assert read.data.eval_results is None and read.data.license is None and "test accuracy unknown" in read.text


def test_its_readme_loads_it(tmp_path: Path) -> None:
    net, state, x = tiny()
    export_hub(tmp_path / "model.safetensors", net, state, x, card={"architecture": ARCHITECTURE})
    code = (tmp_path / "README.md").read_text().partition("```python\n")[2].partition("```")[0]
    with torch.no_grad():
        torch.save((x, simulated(net, state)(x)), tmp_path / "expected.pt")
    before = "import torch\nimages, expected = torch.load('expected.pt', weights_only=True)\n"
    after = "\nassert torch.equal(logits, expected)"
    environment = {"PYTHONPATH": ":".join([str(Path(__file__).parents[2]), *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", before + code + after], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["README.md", "config.json", "model.safetensors"])
def test_none_of_its_files_is_overwritten(name: str, tmp_path: Path) -> None:
    net, state, x = tiny()
    (tmp_path / name).write_text("mine")
    with pytest.raises(FileExistsError, match=name):
        export_hub(tmp_path / "model.safetensors", net, state, x)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "mine"


def test_the_card_is_counted_apart(tmp_path: Path) -> None:
    net, state, x = tiny()
    card = {"card": card_of(0.75).sections, "architecture": ARCHITECTURE}
    export_hub(tmp_path / "model.safetensors", net, state, x, card=card)
    with_card = read_packed(tmp_path / "model.safetensors")
    export_hub(tmp_path / "model.safetensors", net, state, x, overwrite=True)
    without = read_packed(tmp_path / "model.safetensors")
    assert with_card.card == card and without.parts["card"] == 0 < with_card.parts["card"]
    assert abs(with_card.parts["header"] - without.parts["header"]) < 16  # safetensors fills up to 8 bytes


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bsq_lightning.exporters.hub.find_spec", lambda name: None)
    net, state, x = tiny()
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'bsq_lightning\[hub\]'"):
        export_hub(tmp_path / "model.safetensors", net, state, x)
    assert not list(tmp_path.iterdir())
