"""A run that ended within its epochs goes on to the same codes, bit for bit, whatever the method."""

from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bsq_lightning.callbacks import PrecisionAdjustment
from bsq_lightning.checkpoint_io import AtomicCheckpointIO
from bsq_lightning.data import DigitsDataModule
from bsq_lightning.models import ResNetCifar
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from tests.helpers import METHODS


class StopAfter(L.Callback):
    """Ends a run after an epoch, as a killed one would have ended."""

    def __init__(self, epoch: int | None) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == self.epoch


def trained(method: str, folder: Path, stop_after: int | None = None, resume: bool = False) -> QuantModule:
    torch.manual_seed(0)
    weight, activation, regularizer = METHODS[method]
    network = QuantizedNetwork(ResNetCifar(8), weight, activation, precision=6, act_precision=4)
    module = QuantModule(
        network,
        num_classes=10,
        optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-4),
        scheduler=partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=5),
        regularizer=regularizer,
    )
    checkpoint = ModelCheckpoint(
        folder, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    trainer = L.Trainer(
        max_epochs=5, accelerator="cpu", logger=False, num_sanity_val_steps=0, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, plugins=[AtomicCheckpointIO()],
        callbacks=[PrecisionAdjustment(2), StopAfter(stop_after), checkpoint],
    )  # fmt: skip
    data = DigitsDataModule(batch_size=64, limit_train=192)
    trainer.fit(module, data, ckpt_path=str(folder / "last.ckpt") if resume else None)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_ends_where_the_whole_one_does(method: str, tmp_path: Path) -> None:
    whole = trained(method, tmp_path / "whole")
    trained(method, tmp_path / "stopped", stop_after=2)  # an interval has begun before
    resumed = trained(method, tmp_path / "stopped", resume=True)
    assert method != "msq" or whole.network.scheme().mean_precision < 6, "no bit was dropped: nothing was tried"
    state = resumed.network.state_dict()
    for key, value in whole.network.state_dict().items():
        assert torch.equal(value, state[key]) if isinstance(value, torch.Tensor) else value == state[key], key
