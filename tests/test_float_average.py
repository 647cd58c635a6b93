"""Averages of float parameters: the rule, what is measured and stored, and that training does not notice."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from bsq_lightning.callbacks import FloatAverage
from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.models import ResNetCifar
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import PACT
from bsq_lightning.quantizers.lsq import LSQQuantizer
from tests.quantizers.test_resume import StopAfter
from tests.test_callbacks import digits, trainer

DECAY = 0.7


class Witness(L.Callback):
    """Every parameter after every step, and batch norm's factor at validation."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Tensor]] = []
        self.measured: list[Tensor] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, QuantModule)
        self.steps.append({name: p.detach().clone() for name, p in pl_module.network.named_parameters()})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, QuantModule)
        self.measured.append(pl_module.network.net.get_parameter("bn1.weight").detach().clone())


def trained(
    folder: Path, averaged: bool, stop_after: int | None = None, resume: bool = False
) -> tuple[QuantModule, Witness]:
    torch.manual_seed(0)
    network = QuantizedNetwork(ResNetCifar(8), LSQQuantizer, PACT, precision=2, act_precision=4)
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    live, witness = QuantModule(network, num_classes=10, optimizer=sgd), Witness()
    checkpoint = ModelCheckpoint(
        folder, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks = [*([FloatAverage(DECAY)] if averaged else []), witness, StopAfter(stop_after), checkpoint]
    fit = trainer(folder, callbacks=callbacks)
    fit.fit(live, digits(limit_train=192), ckpt_path=str(folder / "last.ckpt") if resume else None)
    return live, witness


@pytest.mark.filterwarnings("ignore")
def test_training_does_not_notice_and_the_end_is_the_average_resumed_too(tmp_path: Path) -> None:
    live, seen = trained(tmp_path / "whole", averaged=True)
    plain, others = trained(tmp_path / "plain", averaged=False)
    trained(tmp_path / "stopped", averaged=True, stop_after=1)
    resumed, _ = trained(tmp_path / "stopped", averaged=True, resume=True)
    for step, other in zip(seen.steps, others.steps, strict=True):
        assert all(torch.equal(value, other[name]) for name, value in step.items())
    for kept in (resumed.state_dict(), load_checkpoint(tmp_path / "whole" / "last.ckpt")["state_dict"]):
        for key, value in live.state_dict().items():
            assert torch.equal(value, kept[key]) if isinstance(value, Tensor) else value == kept[key], key
    quantized = {f"net.{name}.weight" for name in live.network.names()}
    last, moved = others.steps[-1], 0
    for name, parameter in live.network.named_parameters():
        if name in quantized or not parameter.requires_grad:
            assert torch.equal(parameter, last[name]), name
            continue
        moved += not torch.equal(parameter, last[name])
        average = dict(_untrained())[name]
        for t, step in enumerate(others.steps):
            decay = min(DECAY, (2 + t) / (11 + t))
            average = decay * average + (1 - decay) * step[name]
        torch.testing.assert_close(parameter.detach(), average, rtol=1e-4, atol=1e-6)
    assert moved > 10  # a clip that no activation reaches has no gradient
    assert torch.equal(seen.measured[-1], live.network.net.get_parameter("bn1.weight"))
    assert torch.equal(others.measured[-1], plain.network.net.get_parameter("bn1.weight"))
    live.network.check_weights()


def _untrained() -> list[tuple[str, Tensor]]:
    torch.manual_seed(0)
    network = QuantizedNetwork(ResNetCifar(8), LSQQuantizer, PACT, precision=2, act_precision=4)
    return [(name, p.detach().clone()) for name, p in network.named_parameters()]


@pytest.mark.parametrize("wrong", [0.0, 1.0, -1])
def test_a_decay_that_is_none_is_refused(wrong: float) -> None:
    with pytest.raises(ValueError, match="average.decay is between"):
        FloatAverage(wrong)
