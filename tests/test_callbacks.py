"""The order at the end of an epoch, the audit, and ranges that do not depend on the batch."""

import json
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bsq_lightning.callbacks import PrecisionAdjustment, RangeCalibration, RunRecorder
from bsq_lightning.callbacks.each_step import EachStep
from bsq_lightning.checkpoint_io import AtomicCheckpointIO, load_checkpoint
from bsq_lightning.data import DigitsDataModule
from bsq_lightning.models import ResNetCifar
from bsq_lightning.module import NonFiniteLossError, QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import Adjustment, BitPlaneQuantizer, relu6_or_pact
from bsq_lightning.regularizers import BitGroupLasso


def module(alpha: float = 20.0, **changes: object) -> QuantModule:
    torch.manual_seed(0)
    network = QuantizedNetwork(ResNetCifar(8), BitPlaneQuantizer, relu6_or_pact, act_precision=4)
    optimizer = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.05)
    arguments: dict = {"num_classes": 10, "optimizer": optimizer, "regularizer": BitGroupLasso(alpha)}
    return QuantModule(network, **{**arguments, **changes})


def trainer(folder: Path, **changes: object) -> L.Trainer:
    callbacks = [
        PrecisionAdjustment(2, str(folder)),
        RangeCalibration(2),
        RunRecorder(str(folder)),
        ModelCheckpoint(folder, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False),
    ]
    arguments: dict = {
        "max_epochs": 4, "accelerator": "cpu", "num_sanity_val_steps": 0, "logger": False, "callbacks": callbacks,
        "enable_progress_bar": False, "enable_model_summary": False, "use_distributed_sampler": False,
        "plugins": [AtomicCheckpointIO()],
    }  # fmt: skip
    return L.Trainer(**{**arguments, **changes})


def digits(**changes: object) -> DigitsDataModule:
    return DigitsDataModule(**{"batch_size": 64, "limit_train": 256, **changes})


@pytest.mark.filterwarnings("ignore")
def test_what_is_on_disk_is_what_is_live(tmp_path: Path) -> None:
    live = module()
    trainer(tmp_path).fit(live, digits())
    rows = [json.loads(line) for line in (tmp_path / "adjustments.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 3]
    assert rows[-1]["bits_after"] < rows[0]["bits_before"], "nothing was trimmed, so the order was not tried"
    saved = load_checkpoint(tmp_path / "last.ckpt")["state_dict"]
    for key, value in live.state_dict().items():
        assert torch.equal(value, saved[key]) if isinstance(value, torch.Tensor) else value == saved[key], key
    scheme = json.loads((tmp_path / "scheme.json").read_text())
    assert {row["name"]: row["precision"] for row in scheme["layers"]} == live.network.scheme().precisions()
    for row in rows:
        assert set(row["layers"]) == set(live.network.names())
        norms = [len(layer["plane_norms"]) == layer["from"] for layer in row["layers"].values()]
        assert all(norms)


@pytest.mark.filterwarnings("ignore")
def test_accuracy_with_fixed_ranges_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    live = module(alpha=0.0)
    trainer(tmp_path, max_epochs=1).fit(live, digits())
    tester = trainer(tmp_path, callbacks=[])
    results = [tester.test(live, digits(eval_batch_size=size), verbose=False)[0]["test/acc"] for size in (360, 7)]
    assert results[0] == results[1]
    assert all(float(q.range) > 0 for q in live.network.activation_quantizers.values())


@pytest.mark.filterwarnings("ignore")
def test_data_that_cannot_calibrate_is_refused_before_the_first_step(tmp_path: Path) -> None:
    data = digits()
    data.setup("fit")
    loader = data.train_dataloader()
    with pytest.raises(TypeError, match=r"calibration_dataloader\(\).*leave it out"):
        trainer(tmp_path).fit(module(), loader)
    trainer(tmp_path, callbacks=[RangeCalibration(0)], max_epochs=1, enable_checkpointing=False).fit(module(), loader)
    floats = QuantModule(QuantizedNetwork(ResNetCifar(8)), num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.1))
    # Here no activations are quantized.
    trainer(tmp_path, callbacks=[RangeCalibration(2)], max_epochs=1, enable_checkpointing=False).fit(floats, loader)


@pytest.mark.filterwarnings("ignore")
def test_bf16_autocast_keeps_latents_in_32_bits(tmp_path: Path) -> None:
    live = module()
    trainer(tmp_path, max_epochs=1, precision="bf16-mixed").fit(live, digits())
    for _, parameter, quantizer in live.network.quantizers():
        assert parameter.dtype == quantizer.planes.dtype == torch.float32
    live.network.check_weights()


@pytest.mark.filterwarnings("ignore")
def test_accumulation_and_clipping_act_as_on_a_float_network(tmp_path: Path) -> None:
    live = module()
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=2, gradient_clip_val=1e-12).fit(live, digits())
    # With gradients clipped away only decay and lasso act, so every plane of a layer shrinks alike.
    planes = live.network.quantizer("layer3.0.conv2").planes
    for bit in range(planes.shape[1]):
        values = planes[:, bit][planes[:, bit] > 0]
        assert values.numel() == 0 or float(values.max() - values.min()) < 1e-3


class Steps(EachStep):
    """The optimizer steps that were made when it was asked."""

    def __init__(self) -> None:
        self.seen: list[int] = []

    def after_step(self, trainer: L.Trainer, module: QuantModule, batch: object) -> None:
        self.seen.append(trainer.global_step)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("accumulated", "steps"), [(1, 8), (3, 4)])
def test_a_step_is_told_once_however_many_batches_it_takes(accumulated: int, steps: int, tmp_path: Path) -> None:
    """Four batches an epoch: the last is a step, whether there are as many as asked or not."""
    told = Steps()
    settings = {"max_epochs": 2, "accumulate_grad_batches": accumulated, "callbacks": [told]}
    trainer(tmp_path, **settings, enable_checkpointing=False).fit(module(), digits())
    assert told.seen == list(range(1, steps + 1))


def test_an_adjustment_that_moves_weights_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: BitPlaneQuantizer) -> Adjustment:
        self.scale.mul_(1.001)
        return Adjustment()

    monkeypatch.setattr(BitPlaneQuantizer, "adjust_precision_", broken)
    with pytest.raises(RuntimeError, match="the adjustment moved a weight of .* by 1.0e-03 relative"):
        trainer(tmp_path, max_epochs=1).fit(module(), digits())


@pytest.mark.parametrize("interval", [0, -1, 1.5, True])
def test_interval_must_be_a_positive_whole_number(interval: object) -> None:
    with pytest.raises(ValueError, match="adjustment interval"):
        PrecisionAdjustment(interval)  # type: ignore[arg-type]


class Overflow(L.Callback):
    """Breaks a weight in the last step of an epoch, behind its loss."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: object) -> None:
        if trainer.is_last_batch:
            next(pl_module.network.net.parameters()).data.fill_(float("inf"))  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore")
def test_what_the_last_step_breaks_is_told_and_not_saved(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="became NaN or infinite in the last step of epoch 1 of stage bits"):
        trainer(tmp_path, callbacks=[ModelCheckpoint(tmp_path), Overflow()]).fit(module(), digits())
    assert not list(tmp_path.glob("*.ckpt"))
