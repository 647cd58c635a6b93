"""The real ResNet-20 on real images: agreement of every format, sizes that shrink with the scheme, the ledger."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bsq_lightning.data.numpy_pickle import read_numpy_pickle
from bsq_lightning.exporters import (
    certify,
    export_onnx,
    export_packed,
    export_torch,
    load,
    run_in_integers,
    simulated,
    size_ledger,
    verify,
)
from bsq_lightning.exporters.ledger import entropy_bits
from bsq_lightning.models import resnet20
from tests.exporters.exporters import NEEDS_ONNX
from tests.exporters.pairs import Pair, cifar, deep, real, tiny


@pytest.fixture
def resnet(bsq_data: Path) -> Pair:
    return real(bsq_data, 100)


def test_packed_logits_are_the_same_on_real_images(resnet: Pair, bsq_data: Path, tmp_path: Path) -> None:
    net, state, x = resnet
    exported = export_packed(tmp_path / "net.safetensors", net, state)
    with torch.no_grad():
        expected, found = simulated(net, state)(x), load(exported.path, resnet20())(x)
    assert torch.equal(found, expected)
    assert float((found.argmax(1) == cifar(bsq_data, "test_batch", 100)[1]).float().mean()) > 0.6  # untrained rounding
    assert exported.size < state.scheme().bits("model") / 8 + 14_000


@pytest.mark.slow
@NEEDS_ONNX
@pytest.mark.parametrize("fold", [False, True])
def test_onnx_agrees_site_by_site_on_real_images(fold: bool, resnet: Pair, tmp_path: Path) -> None:
    net, state, x = resnet
    report = export_onnx(tmp_path / "net.onnx", net, state, x, fold=fold).report
    assert report["codes"] > 1e7 and report["codes_that_differ"] <= 1e-6 * report["codes"]
    assert report["logits"] < 1e-5 and report["top1"] >= 0.99 and report["top1_optimized"] >= 0.99


def test_integers_agree_code_for_code_on_real_images(resnet: Pair) -> None:
    run = run_in_integers(*resnet)
    run.agreement.check("integers", 1e-6, 1e-5)
    assert run.agreement.differ <= 1e-6 * sum(site.codes for site in run.agreement.sites)
    assert run.top1 >= 0.99
    assert all(sums.bits <= 32 and sums.seen <= sums.bits for sums in run.accumulators)


@pytest.mark.slow
@NEEDS_ONNX
def test_the_ledger_has_a_reason_for_every_byte(tmp_path: Path) -> None:
    net, state, x = deep()
    files = {
        "packed": export_packed(tmp_path / "net.safetensors", net, state).path,
        "onnx": export_onnx(tmp_path / "net.onnx", net, state, x).path,
        "torch.export": export_torch(tmp_path / "net.pt2", net, state, x).path,
    }
    rows = {row.form: row for row in size_ledger(net, state, files)}
    for name, path in files.items():
        assert rows[name].size == path.stat().st_size
        assert sum(rows[name].parts.values()) == rows[name].size
        assert all(str(size) in rows[name].reason for size in rows[name].parts.values())
    assert rows["claim: paper"].size < rows["claim: signed"].size < rows["claim: model"].size < rows["packed"].size
    assert rows["packed"].size < rows["onnx"].size < rows["float checkpoint"].size < rows["torch.export"].size
    if "packed + zstd" in rows:
        assert rows["packed + zstd"].size < rows["packed"].size
    place = certify(files["packed"], net, state, x, ledger=tuple(rows.values()))
    assert place.is_file() and verify(files["packed"], resnet20()).passed


def test_entropy_of_known_codes() -> None:
    assert entropy_bits(torch.arange(8)) == 24
    assert entropy_bits(torch.zeros(100)) == 0
    assert entropy_bits(torch.tensor([0, 0, 0, 1])) == pytest.approx(3.245, abs=1e-3)


PROGRAM = """
import sys
import torch

x, expected = torch.load(sys.argv[2], weights_only=True)
assert torch.equal(torch.export.load(sys.argv[1]).module()(x), expected)
print(*sorted({name.split(".")[0] for name in sys.modules} & {"bsq_lightning", "lightning", "hydra"}))
"""


def test_a_program_runs_in_a_process_without_this_package(tmp_path: Path) -> None:
    net, state, x = tiny()
    export_torch(tmp_path / "net.pt2", net, state, x)
    with torch.no_grad():
        torch.save((x[:3], simulated(net, state)(x[:3])), tmp_path / "expected.pt")
    arguments = [sys.executable, "-c", PROGRAM, str(tmp_path / "net.pt2"), str(tmp_path / "expected.pt")]
    result = subprocess.run(arguments, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert not result.stdout.split()


def test_the_process_in_the_docs_classifies_a_real_image(resnet: Pair, bsq_data: Path, tmp_path: Path) -> None:
    from PIL import Image

    net, state, x = resnet
    export_packed(tmp_path / "network.safetensors", net, state)
    content = read_numpy_pickle(bsq_data / "cifar-10-batches-py" / "test_batch")
    Image.fromarray(content["data"][0].reshape(3, 32, 32).transpose(1, 2, 0)).save(tmp_path / "image.png")
    page = (Path(__file__).parents[2] / "docs" / "shipping.md").read_text()
    code = page.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run([sys.executable, "-c", code, "image.png"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        assert int(done.stdout) == int(simulated(net, state)(x[:1]).argmax())
