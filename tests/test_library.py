"""The door for notebooks: it works without Hydra and Lightning, and costs nothing until it is used."""

import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import bsq_lightning
from bsq_lightning.quantizers import LatentQuantizer

ROOT = Path(__file__).parents[1]


def test_the_example_trains_and_removes_bits() -> None:
    lines = (ROOT / "examples" / "plain_loop.py").read_text().splitlines()
    assert len(lines) <= 30
    code = "\n".join(
        [*lines, "import sys", "assert not {'hydra', 'lightning', 'omegaconf', 'wandb'} & set(sys.modules)"]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    floats, *_, last = done.stdout.splitlines()
    accuracy = float(last.split()[2])
    assert accuracy > float(floats.split()[1]) - 0.05
    bits = [int(part) for part in last.partition("{")[2].rstrip("}").replace(",", "").split() if part.isdigit()]
    assert min(bits) < 8, "nothing was trimmed, so the example shows nothing"


def test_the_example_with_lightning_trains_and_removes_bits(tmp_path: Path) -> None:
    lines = (ROOT / "examples" / "lightning_loop.py").read_text().splitlines()
    assert sum(bool(line) and not line.startswith(("import", "from", '"""')) for line in lines) <= 16
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=300, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    accuracy = float(re.findall(r"'test/acc': ([\d.]+)", done.stdout)[0])
    bits = [int(n) for n in re.findall(r"'[\w.]+': (\d+)[,}]", done.stdout.rpartition("{")[2])]
    assert accuracy > 0.8 and min(bits) < 8, done.stdout
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert "without the clips" in checkpoint["note"]
    convs = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()]
    plain = nn.Sequential(*convs, nn.Flatten(), nn.Linear(288, 10))
    own = {
        k.removeprefix("network.net."): v for k, v in checkpoint["state_dict"].items() if k.startswith("network.net.")
    }
    plain.load_state_dict(own)


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, bsq_lightning; assert 'torch' not in sys.modules; bsq_lightning.quantize; import torch"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_what_it_does_not_have_is_said() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'quantise'; a notebook finds quantize, "):
        bsq_lightning.quantise  # noqa: B018


def test_a_scheme_travels() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    found = bsq_lightning.read_scheme(bsq_lightning.quantize(net, precision={"0": 3, "3": 1}, act_precision=4))
    again = bsq_lightning.quantize(net, partial(LatentQuantizer, step="mse"), precision=found)
    assert bsq_lightning.read_scheme(again).precisions() == {"0": 3, "3": 1}


def test_calibrated_ranges_make_results_independent_of_the_batch() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))
    network = bsq_lightning.quantize(net, act_precision=4).eval()
    images = torch.rand(8, 3, 6, 6)
    bsq_lightning.calibrate(network, [images])
    assert torch.allclose(network(images)[:1], network(images[:1]), atol=1e-6)


def test_the_momentum_goes_at_an_adjustment() -> None:
    network = bsq_lightning.quantize(nn.Sequential(nn.Linear(4, 2)))
    optimizer = bsq_lightning.build_optimizer(network, partial(torch.optim.SGD, lr=0.1, momentum=0.9), alpha=1e-3)
    network(torch.rand(3, 4)).sum().backward()
    optimizer.step()
    assert optimizer.state
    done = bsq_lightning.adjust(network, optimizer)
    assert not optimizer.state and "plane_norms" in done["0"].audit
    bsq_lightning.adjust(network, optimizer, bits={"0": 2})
    assert bsq_lightning.read_scheme(network).precisions() == {"0": 2}
    with pytest.raises(ValueError, match="there is no quantized tensor 'fc'"):
        bsq_lightning.adjust(network, bits={"fc": 2})


def test_a_penalty_with_nothing_to_act_on_is_refused() -> None:
    network = bsq_lightning.quantize(nn.Sequential(nn.Linear(4, 2)), LatentQuantizer)
    with pytest.raises(ValueError, match="needs bit planes"):
        bsq_lightning.build_optimizer(network, partial(torch.optim.SGD, lr=0.1), alpha=1e-3)
