"""Batch norm measured anew: what is measured, and that nothing else changes by it."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torchvision.transforms.v2 import CutMix

from bsq_lightning.callbacks import BatchStatistics, PrecisionAdjustment, RangeCalibration
from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.models import ResNetCifar
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import LatentQuantizer
from tests.quantizers.test_resume import StopAfter
from tests.test_callbacks import digits, module, trainer

BATCHES = 3


class Witness(L.Callback):
    """Every parameter, the optimizer's momenta, the generator and the labels, after every step."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, QuantModule)
        optimizer: Any = pl_module.optimizers(use_pl_optimizer=False)
        momenta = [value for state in optimizer.inner.state.values() for value in state.values()]
        momenta += [value for state in optimizer.state.values() for value in state.values()]
        self.seen.append({
            **{name: p.detach().clone() for name, p in pl_module.network.named_parameters()},
            **{f"momentum {i}": m.clone() for i, m in enumerate(momenta) if isinstance(m, Tensor)},
            "generator": torch.get_rng_state(),
            "labels": batch[1].clone(),
        })  # fmt: skip


def trained(
    folder: Path, measured: bool, stop_after: int | None = None, resume: bool = False
) -> tuple[QuantModule, list[dict[str, Any]]]:
    witness, live = Witness(), module(mix=CutMix(num_classes=10))
    checkpoint = ModelCheckpoint(
        folder, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    callbacks = [
        *([BatchStatistics(BATCHES)] if measured else []), PrecisionAdjustment(2), RangeCalibration(2), witness,
        StopAfter(stop_after), checkpoint,
    ]  # fmt: skip
    fit = trainer(folder, callbacks=callbacks)
    fit.fit(live, digits(limit_train=160), ckpt_path=str(folder / "last.ckpt") if resume else None)
    return live, witness.seen


def without_files(batches: int | None, **changes: Any) -> L.Trainer:
    callbacks = [] if batches is None else [BatchStatistics(batches)]
    return trainer(Path(), callbacks=callbacks, enable_checkpointing=False, **changes)


def same(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert torch.equal(value, other[key]) if isinstance(value, Tensor) else value == other[key], key


@pytest.mark.filterwarnings("ignore")
def test_training_goes_the_same_way_with_it_without_it_and_resumed(tmp_path: Path) -> None:
    whole, steps = trained(tmp_path / "whole", measured=True)
    without, others = trained(tmp_path / "without", measured=False)
    _, begun = trained(tmp_path / "stopped", measured=True, stop_after=1)
    resumed, rest = trained(tmp_path / "stopped", measured=True, resume=True)
    assert len(steps) == len(others) == len(begun) + len(rest) and begun and rest
    for step, other, third in zip(steps, others, begun + rest, strict=True):
        same(step, other)
        same(step, third)
    assert whole.network.scheme().precisions() == without.network.scheme().precisions()
    same(whole.state_dict(), resumed.state_dict())
    measured, running = (live.network.net.get_buffer("bn1.running_var") for live in (whole, without))
    assert not torch.equal(measured, running), "nothing was measured"
    same(whole.state_dict(), load_checkpoint(tmp_path / "whole" / "last.ckpt")["state_dict"])


@pytest.mark.filterwarnings("ignore")
def test_it_is_the_mean_over_the_batches_that_the_epoch_began_with() -> None:
    live = module()
    data = digits()
    without_files(BATCHES, max_epochs=2).fit(live, data)
    net = live.network.net
    means: dict[str, list[Tensor]] = {}
    variances: dict[str, list[Tensor]] = {}

    def see(name: str, layer: nn.Module, inputs: tuple[Tensor]) -> None:
        values = inputs[0].transpose(0, 1).flatten(1)
        means.setdefault(name, []).append(values.mean(1))
        variances.setdefault(name, []).append(values.var(1))

    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    for name, layer in layers.items():
        layer.register_forward_pre_hook(partial(see, name))
    kept = {key: value.clone() for key, value in live.network.state_dict().items() if isinstance(value, Tensor)}
    live.network.eval()
    for layer in layers.values():
        layer.train()
    with torch.no_grad():
        for _, (images, _labels) in zip(range(BATCHES), data.epoch_dataloader(1), strict=False):
            live(images)
    for name in layers:
        for what, batches in (("mean", means), ("var", variances)):
            expected = torch.stack(batches[name]).mean(0)
            assert len(batches[name]) == BATCHES
            torch.testing.assert_close(kept[f"net.{name}.running_{what}"], expected, rtol=1e-4, atol=1e-5)
        assert layers[name].momentum == 0.1


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_shrank_is_measured_as_it_is() -> None:
    """The case it is for: weights at half their size, running statistics of the old ones."""
    torch.manual_seed(0)
    network = QuantizedNetwork(ResNetCifar(8), partial(LatentQuantizer, units="weight"))
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    live, data = QuantModule(network, num_classes=10, optimizer=sgd), digits(limit_train=None)
    fit = without_files(BATCHES, max_epochs=3)
    fit.fit(live, data)
    before = float(fit.callback_metrics["val/acc"])
    with torch.no_grad():
        for name, _, quantizer in network.quantizers():
            for part in (quantizer.latent, quantizer.scale) if name != "fc" else ():
                part.mul_(0.5)  # type: ignore[operator]
    network.write_weights_()
    stale, again = (without_files(n).validate(live, data, verbose=False)[0]["val/acc"] for n in (None, BATCHES))
    assert stale < before - 0.2 and again > before - 0.05


@pytest.mark.parametrize("wrong", [0, -1, 2.5, True])
def test_a_number_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match="batch_norm_batches is a positive number"):
        BatchStatistics(wrong)  # type: ignore[arg-type]
