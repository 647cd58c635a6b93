"""The memory of a stage: every part of it by hand for ResNet-20, and the row that preflight prints."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.cli.building.machine import available_memory
from bsq_lightning.cli.building.trainers import check_memory
from bsq_lightning.cli.run.stage_memory import stage_memory
from bsq_lightning.models import resnet20
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.tensor_bytes import saved_bytes
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, relu6_or_pact
from bsq_lightning.train import main
from tests.cli.commands import TINY
from tests.test_conf import composed

QUANTIZED, ALL, NORMS, RELUS = 268_336, 272_474, 21, 18
CHANNELS = 16 * 7 + 32 * 7 + 64 * 7


def stepped(
    network: QuantizedNetwork, optimizer: Callable[..., torch.optim.Optimizer]
) -> tuple[QuantModule, torch.optim.Optimizer]:
    module = QuantModule(network, num_classes=10, optimizer=optimizer)
    built = module.configure_optimizers()
    module(torch.randn(2, 3, 32, 32)).sum().backward()
    built.step()
    return module, built


SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9)


@pytest.mark.parametrize("several", [False, True])
def test_bit_planes_of_resnet20_by_hand(several: bool) -> None:
    network = QuantizedNetwork(
        resnet20(), BitPlaneQuantizer, relu6_or_pact, act_precision=4, skip=["*.downsample.0"],
        float_activations=["relu"],
    )  # fmt: skip
    memory = stage_memory(*stepped(network, SGD), 64, 32, "32-true", several)
    planes = 2 * 8 * QUANTIZED + 20  # and a scale for each of the 20 tensors
    assert memory.latents == 2 * 4 * planes + 4 * 20 * 8  # momentum of both; a norm for each bit of each tensor
    buffers = 4 * 2 * CHANNELS + 8 * NORMS + 4 * RELUS
    assert memory.weights == 4 * ALL + buffers + 4 * ALL + 4 * (ALL - QUANTIZED)
    assert memory.buckets == (4 * ALL if several else 0)
    assert memory.images == 4 * 64 * 3 * 32 * 32
    assert memory.activations == saved_bytes(network, (64, 3, 32, 32))
    assert memory.total == sum(part for part in memory[1:] if part)


def test_fixed_precision_and_float_and_another_optimizer() -> None:
    latent = QuantizedNetwork(resnet20(), partial(LatentQuantizer, units="scale"), skip=["*.downsample.0"])
    memory = stage_memory(*stepped(latent, SGD), 8, 32, "32-true", False)
    assert memory.latents == 2 * 4 * (QUANTIZED + 20)
    plain = QuantizedNetwork(resnet20())
    with_momentum = stage_memory(*stepped(plain, SGD), 8, 32, "32-true", False)
    adam = stage_memory(*stepped(plain, partial(torch.optim.Adam, lr=1e-3)), 8, 32, "32-true", False)
    assert with_momentum.latents == adam.latents == 0
    buffers = 4 * 2 * CHANNELS + 8 * NORMS
    assert with_momentum.weights == 3 * 4 * ALL + buffers
    tensors = len(list(plain.parameters()))
    assert adam.weights == 4 * 4 * ALL + buffers + 4 * tensors  # and a count of steps for each tensor


def test_autocast_halves_the_activations() -> None:
    built = stepped(QuantizedNetwork(resnet20()), SGD)
    full, half = (stage_memory(*built, 64, 32, precision, False) for precision in ("32-true", "bf16-mixed"))
    assert full.activations and half.activations
    assert 0.45 * full.activations < half.activations < 0.6 * full.activations
    assert full[2:] == half[2:]


class Asks(nn.Module):
    """Its forward pass depends on what is in a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean((2, 3))
        return self.layer(x if float(x.sum()) > 0 else -x)


def test_what_cannot_be_counted_is_said() -> None:
    memory = stage_memory(*stepped(QuantizedNetwork(Asks()), SGD), 8, 32, "32-true", False)
    assert memory.activations is None
    assert "the activations, which cannot be counted for this network" in str(memory)


def test_preflight_prints_a_row_for_each_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["train", *TINY, "preflight=only", f"hydra.run.dir={tmp_path / 'run'}"])
    main()
    output = "".join(capsys.readouterr())
    assert output.count("memory per device") == 3
    assert "MB at batch 64: activations" in output
    assert "DDP buckets" not in output
    assert not (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.slow
def test_preflight_of_a_recipe_takes_a_few_images_and_counts_all(
    bsq_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = bsq_data / "imagenet-sample" / "train"
    if not sample.is_dir():
        pytest.skip("needs imagenet-sample in the folder that BSQ_DATA names")
    (tmp_path / "data").mkdir()
    for part in ("train", "val"):  # the sample has one set of images, which serves as both
        (tmp_path / "data" / part).symlink_to(sample, target_is_directory=True)
    overrides = ["model.weights=null", f"data.root={tmp_path / 'data'}", "data.val_split=20", "data.num_workers=0"]
    monkeypatch.setattr(
        "sys.argv",
        ["train", "experiment=bsq_resnet18_imagenet", "preflight=only", "logger=none", *overrides,
         f"hydra.run.dir={tmp_path / 'run'}"],
    )  # fmt: skip
    main()
    output = "".join(capsys.readouterr())
    assert output.count("(scaled up from") == 3
    assert output.count("B at batch 32: activations") == 3  # the recipe's batch, not that of the trial


def test_processes_that_memory_does_not_hold_are_refused() -> None:
    two = composed("trainer=ddp_cpu", "trainer.devices=2")
    check_memory(two, available_memory() // 3)
    with pytest.raises(ValueError, match="trainer.devices=1 fits"):
        check_memory(two, available_memory() // 2 + 1)
    check_memory(composed("trainer=ddp_cpu", "trainer.devices=2", "oversubscribe=true"), available_memory())
    check_memory(composed(), available_memory())
