"""Export, verify and allocate as commands: a small run that ships, and the line that needs no training."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bsq_lightning.scheme import Scheme
from tests.cli.commands import TINY, run


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
    code, output = run("export", f"run={trained}", "export=onnx", "export.write.fold=true")
    assert code == 0, output
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
