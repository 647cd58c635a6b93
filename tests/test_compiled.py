"""``compile`` and ``channels_last``: the same training, in fewer kernels or another layout of memory."""

import copy
import shutil
import sysconfig
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import functional as F

from bsq_lightning.cli.building.checks import check_settings
from bsq_lightning.cli.building.networks import build_net, build_network
from bsq_lightning.module import measuring
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer, relu6_or_pact
from bsq_lightning.regularizers import BitGroupLasso
from tests.cli.commands import TINY, run
from tests.helpers import TinyNet, batch
from tests.test_conf import composed

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").is_file()),
    reason="torch.compile is not tested: there is no g++ or no Python.h",
)


def tiny(net: torch.nn.Module | None = None) -> tuple[QuantizedNetwork, LatentOptimizer]:
    bits = partial(BitPlaneQuantizer, max_precision=6)
    network = QuantizedNetwork(net or TinyNet(), bits, relu6_or_pact, precision=6, act_precision=4)
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=5e-2)
    return network, LatentOptimizer(network, sgd, BitGroupLasso(10.0))


def step(network: QuantizedNetwork, optimizer: LatentOptimizer, images: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(network(images), labels).backward()
    optimizer.step()


def distance(one: QuantizedNetwork, other: QuantizedNetwork) -> float:
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for a, b in pairs if a.numel())


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


@needs_compiler
def test_compiled_training_is_the_eager_one_and_an_adjustment_compiles_nothing() -> None:
    torch.manual_seed(1)
    network, optimizer = tiny()
    torch.manual_seed(1)
    twin, twins = tiny()
    names, before = list(network.state_dict()), graphs()
    adjusted = False
    with network.compiled():
        assert list(network.state_dict()) == names
        for i, size in enumerate((16, 16, 5, 16, 7, 16, 16, 5)):
            images, labels = batch(size)
            step(network, optimizer, images, labels)
            step(twin, twins, images, labels)
            assert distance(network, twin) < 1e-5
            if i == 3:
                seen, bits = graphs() - before, network.scheme().precisions()
                for each, its in ((network, optimizer), (twin, twins)):
                    each.adjust_precision_()
                    its.forget_momentum_()
                adjusted = network.scheme().precisions() != bits
                assert network.scheme().precisions() == twin.scheme().precisions()
        assert adjusted, "nothing was trimmed, so the adjustment was not tried"
        # One graph for whole batches, one for all other sizes: nothing breaks the graph, nothing comes again.
        assert seen == graphs() - before == 2
        with measuring(network), network.observing():
            network(images)
        assert graphs() - before == 2, "a few batches of calibration were compiled"
        trial = copy.deepcopy(network)
        trial(images)
        assert graphs() - before == 2, "a copy of the network is compiled too"
    network(images[:3])
    assert graphs() - before == 2, "the network is still compiled after its stage"


@pytest.mark.slow
@needs_compiler
def test_a_run_is_compiled_and_evaluated_to_the_same_digit(tmp_path: Path) -> None:
    short = ["stages.float.epochs=1", "stages.bits.epochs=2", "stages.bits.adjust_every_n_epochs=1"]
    short = [*short, "stages.finetune.epochs=0", "data.limit_train=128"]
    code, output = run("train", *TINY, *short, "compile=true", "channels_last=true", f"hydra.run.dir={tmp_path}")
    assert code == 0, output
    assert "recompile_limit" not in output
    code, output = run("evaluate", f"run={tmp_path}")
    assert code == 0, output
    accuracies = [line.split()[-1] if "summary" in line else line.split()[2] for line in output.splitlines()[-2:]]
    assert accuracies[0] == accuracies[1]


@pytest.mark.slow
def test_a_run_with_another_layout_and_arithmetic_goes_on_without(tmp_path: Path) -> None:
    short = ["stages.bits.epochs=1", "stages.finetune.epochs=1", "data.limit_train=128", "trainer.precision=bf16-mixed"]
    code, output = run("train", *TINY, *short, "channels_last=true", "until=bits", f"hydra.run.dir={tmp_path}")
    assert code == 0, output
    code, output = run("train", f"resume={tmp_path}", "channels_last=false")
    assert code == 0, output
    assert (tmp_path / "summary.json").exists()


def test_channels_last_is_the_same_training() -> None:
    torch.manual_seed(1)
    network, optimizer = tiny(TinyNet().double())
    torch.manual_seed(1)
    twin, twins = tiny(TinyNet().double().to(memory_format=torch.channels_last))  # pyright: ignore[reportCallIssue]
    changed = False
    for i in range(12):
        images, labels = batch(16, dtype=torch.float64)
        step(network, optimizer, images, labels)
        step(twin, twins, images, labels)
        assert distance(network, twin) < 1e-12
        for name, parameter, quantizer in twin.quantizers():
            if parameter.dim() == 4:
                assert parameter.is_contiguous(memory_format=torch.channels_last), name
                assert parameter.grad is not None
                assert parameter.grad.is_contiguous(memory_format=torch.channels_last), name
            assert isinstance(quantizer, BitPlaneQuantizer)
            assert quantizer.planes.is_contiguous(), "planes have a layout of their own, also after a resume"
        if i in (3, 7):
            bits = network.scheme().precisions()
            for each, its in ((network, optimizer), (twin, twins)):
                each.adjust_precision_()
                its.forget_momentum_()
            assert network.scheme().precisions() == twin.scheme().precisions()
            changed |= network.scheme().precisions() != bits
    assert changed and any(network.scheme().precisions().values())


@pytest.mark.parametrize("stage", ["float", "bits", "finetune"])
def test_the_key_turns_the_convolutions_and_keeps_the_numbers(stage: str) -> None:
    images = torch.randn(2, 3, 16, 16)
    outputs = []
    for key in ("false", "true"):
        torch.manual_seed(2)
        cfg = composed("experiment=quickstart", f"channels_last={key}", "quant.act_precision=0")
        network = build_network(cfg, build_net(cfg, num_classes=10), stage).eval()
        turned = [p.is_contiguous(memory_format=torch.channels_last) for p in network.net.parameters() if p.dim() == 4]
        assert all(turned) == (key == "true")
        outputs.append(network(images))
    assert torch.allclose(*outputs, atol=1e-5)


def test_without_a_compiler_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = composed("experiment=quickstart", "compile=true")
    monkeypatch.setenv("CXX", "/nowhere/g++")
    with pytest.raises(ValueError, match="compile=true needs a C[+][+] compiler, and there is no /nowhere/g[+][+]"):
        check_settings(cfg)
    monkeypatch.setenv("CXX", shutil.which("true") or "true")
    monkeypatch.setattr("sysconfig.get_path", lambda name: "/nowhere/include")
    with pytest.raises(ValueError, match="compile=true needs the headers of Python"):
        check_settings(cfg)
