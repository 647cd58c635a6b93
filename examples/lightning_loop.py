"""BSQ under Lightning's own Trainer, without Hydra: a network of your own, float first, then bit planes."""

from functools import partial

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

import bsq_lightning as bsq
from bsq_lightning.callbacks import PrecisionAdjustment, RangeCalibration
from bsq_lightning.data import DigitsDataModule
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.regularizers import BitGroupLasso

L.seed_everything(1, verbose=False)
convs = [nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU()]
net, data = nn.Sequential(*convs, nn.Flatten(), nn.Linear(288, 10)), DigitsDataModule(batch_size=64)
build = partial(QuantModule, num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.05, momentum=0.9))
settings = {"accelerator": "cpu", "logger": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False}
settings |= {"enable_progress_bar": False, "enable_model_summary": False}

floats = build(QuantizedNetwork(net), stage="float")  # no quantizers: the network itself
L.Trainer(max_epochs=4, enable_checkpointing=False, **settings).fit(floats, data)
module = build(bsq.quantize(net, precision=8, act_precision=4), regularizer=BitGroupLasso(alpha=0.2))
adjust, last = (
    PrecisionAdjustment(every_n_epochs=3),
    ModelCheckpoint("checkpoints", "last", enable_version_counter=False),
)
trainer = L.Trainer(max_epochs=6, callbacks=[adjust, RangeCalibration(num_batches=4), last], **settings)
trainer.fit(module, data)
print(trainer.test(module, data, verbose=False), bsq.read_scheme(module.network).precisions())
