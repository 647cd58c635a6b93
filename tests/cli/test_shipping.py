"""Export, verify and allocate as commands: a small run that ships, and the line that needs no training."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bsq_lightning.export import main
from bsq_lightning.exporters import read_packed, verify
from bsq_lightning.models import ResNetCifar
from bsq_lightning.scheme import Scheme
from tests.cli.commands import TINY, InProcess, in_process, run


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "trained"
    code, output = run("train", *TINY, f"hydra.run.dir={folder}")
    assert code == 0, output
    return folder


LOAD = """
import sys, torch, bsq_lightning
from bsq_lightning.models import ResNetCifar
net = bsq_lightning.load(sys.argv[1], ResNetCifar(8))
assert not {"lightning", "hydra", "omegaconf", "wandb"} & set(sys.modules)
print(net(torch.zeros(1, 3, 16, 16)).argmax(1).tolist())
"""


def test_a_run_ships_and_loads_in_a_process_that_knows_no_lightning(trained: Path) -> None:
    code, output = run("export", f"run={trained}")
    assert code == 0 and "codes" in output, output
    file = trained / "export" / "network.safetensors"
    summary = json.loads((trained / "summary.json").read_text())
    assert f"{-(-summary['sizes']['model']['bits'] // 8):,}" in output
    done = subprocess.run([sys.executable, "-c", LOAD, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code, output = run("verify", str(file), "--run", str(trained))
    assert code == 0, output
    code, output = run("export", f"run={trained}")
    assert code == 1 and "overwrite=true" in output and "Traceback" not in output, output

    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    code, output = run("verify", str(file), "--run", str(trained))
    assert code == 1 and "Traceback" not in output, output


def test_the_onnx_graph_is_checked_before_it_counts_as_written(trained: Path) -> None:
    pytest.importorskip("onnxruntime")
    code, output = run("export", f"run={trained}", "export=onnx", "export.write.fold=true", "latency=2")
    assert code == 0 and "quantized, all optimisations: " in output, output
    code, output = run("verify", str(trained / "export" / "network.onnx"))
    assert code == 0, output


def test_a_budget_is_allocated_and_its_scheme_is_trained(trained: Path, tmp_path: Path) -> None:
    common = [
        *(o for o in TINY if "reg.alpha" not in o and "stages.bits" not in o), "reg=none",
        f"model.weights={trained / 'checkpoints' / 'float.ckpt'}",
    ]  # fmt: skip
    code, output = run("allocate", *common, "target.mean_bits=2.5", f"hydra.run.dir={tmp_path / 'allocated'}")
    assert code == 0 and "predicted rise of the loss" in output, output
    scheme = Scheme.load(tmp_path / "allocated" / "scheme.json")
    assert 2.2 < scheme.mean_precision <= 2.5
    code, output = run(
        "train", *common, "quant=sensitivity", f"scheme={tmp_path / 'allocated' / 'scheme.json'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 0, output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["scheme"] == scheme.precisions() and summary["method"]["name"] == "sensitivity"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["target.mean_bits=2"], "give model.weights=FILE"),
        (["target.mean_bits=0.1", "WEIGHTS"], "least"),
        (["WEIGHTS"], "give one target"),
    ],
)
def test_what_cannot_be_allocated_is_said(trained: Path, tmp_path: Path, arguments: list[str], said: str) -> None:
    weights = f"model.weights={trained / 'checkpoints' / 'float.ckpt'}"
    common = [o for o in TINY if "reg.alpha" not in o and "stages.bits" not in o]
    asked = [weights if each == "WEIGHTS" else each for each in arguments]
    code, output = run("allocate", *common, *asked, f"hydra.run.dir={tmp_path}")
    assert code == 1 and said in output and "Traceback" not in output, output


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> InProcess:
    return in_process(main, monkeypatch, capsys)


def as_of(stage: str, trained: Path, folder: Path) -> Path:
    """The run as it was when it had ended ``stage``."""
    shutil.copytree(trained, folder, ignore=shutil.ignore_patterns("export"))
    (folder / "summary.json").unlink()
    (folder / "card.yaml").unlink()
    (folder / "checkpoints" / f"{stage}.ckpt").replace(folder / "checkpoints" / "last.ckpt")
    return folder


def test_a_run_that_is_not_finished_says_from_which_stage_it_can_be_exported(
    trained: Path, tmp_path: Path, export: InProcess
) -> None:
    folder = as_of("float", trained, tmp_path / "float")
    code, output = export(f"run={folder}")
    assert code == 1 and "from stage bits on" in output and f"resume={folder}" in output, output
    assert not (folder / "export").exists() and "Traceback" not in output
    folder = as_of("bits", trained, tmp_path / "bits")
    code, output = export(f"run={folder}")
    assert code == 0 and "not finished: this is its network of stage bits, epoch 4" in output, output
    card = read_packed(folder / "export" / "network.safetensors").card["card"]
    assert card["results"]["accuracy"] == "unknown" and card["method"]["name"]["value"] == "bit planes"


def test_the_card_and_the_way_to_build_the_network_go_with_every_file(
    trained: Path, tmp_path: Path, export: InProcess
) -> None:
    summary = json.loads((trained / "summary.json").read_text())
    code, output = export(f"run={trained}", "export=hub", f"out={tmp_path / 'hub' / 'model.safetensors'}")
    assert code == 0, output
    card = read_packed(tmp_path / "hub" / "model.safetensors").card
    assert card["card"]["results"]["accuracy"] == summary["accuracy"]["final"]["test/acc"]
    architecture = {"target": "bsq_lightning.models.ResNetCifar", "arguments": {"num_classes": 10, "depth": 8}}
    assert card["architecture"] == architecture | {"folded": False}
    readme = (tmp_path / "hub" / "README.md").read_text()
    assert "from bsq_lightning.models import ResNetCifar" in readme and "ResNetCifar(num_classes=10, depth=8)" in readme
    assert verify(tmp_path / "hub" / "model.safetensors", ResNetCifar(8)).passed
    code, output = export(f"run={trained}", f"out={tmp_path / 'bare.safetensors'}", "card=false")
    assert code == 0 and "card" not in read_packed(tmp_path / "bare.safetensors").card, output
    code, output = export(f"run={trained}", "export=hub", f"out={tmp_path / 'hub' / 'other.safetensors'}")
    assert code == 1 and "config.json exists" in output and "overwrite=True" in output and "Traceback" not in output, (
        output
    )


@pytest.mark.slow
def test_a_full_disk_is_one_message(trained: Path, tmp_path: Path) -> None:
    """A limit on the size of files is met as a full disk is: at the write."""
    code = "import resource, runpy, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    code += "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096)); sys.argv[0] = 'export'; "
    code += "runpy.run_module('bsq_lightning.export', run_name='__main__')"
    arguments = [f"run={trained}", f"out={tmp_path / 'out' / 'net.safetensors'}"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 1 and "File too large" in done.stderr + done.stdout, done.stderr + done.stdout
    assert "Traceback" not in done.stderr and not list((tmp_path / "out").iterdir())
