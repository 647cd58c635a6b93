"""Trains a few epochs of a method in float64 and keeps what one rank saw; run by torchrun, or alone.

python -m tests.ddp.trajectory FOLDER IMAGES_PER_STEP ACT_PRECISION METHOD
"""

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from bsq_lightning.callbacks import PrecisionAdjustment, RankAgreement
from bsq_lightning.cli.building.trainers import ddp
from bsq_lightning.data import DigitsDataModule, TensorImages, keyed_generator
from bsq_lightning.data.base import ImageSets
from bsq_lightning.distributed import world_size
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import BitPlaneQuantizer
from bsq_lightning.quantizers.activation import relu6_or_pact
from bsq_lightning.regularizers import BitGroupLasso
from tests.helpers import METHODS, TinyNet


class Recording(L.Callback):
    """Every weight, plane and scale after every step."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, QuantModule)
        self.steps.append({k: v.detach().clone() for k, v in pl_module.network.named_parameters()})


class Noise(DigitsDataModule):
    """Images without areas of one colour: there whole-numbered codes can cancel, and a ReLU sees 0 or 1e-17, by the
    order of summation, which differs between batch sizes."""

    def load_images(self) -> ImageSets:
        sets = super().load_images()
        generator = keyed_generator("noise")
        for images in sets:
            assert isinstance(images, TensorImages)
            images.images = torch.randint(1, 256, images.images.shape, generator=generator, dtype=torch.uint8)
        return sets


BIT_PLANES = (partial(BitPlaneQuantizer, max_precision=8), relu6_or_pact, BitGroupLasso(alpha=0.5))


def main(folder: Path, images_per_step: int, act_precision: int, method: str) -> None:
    torch.manual_seed(3)
    net = TinyNet()
    net.bn1, net.fc = nn.Identity(), nn.Linear(6, 10)  # batch norm sees one rank's images only, and is meant to
    weight, activation, regularizer = METHODS.get(method, BIT_PLANES)
    network = QuantizedNetwork(net, weight, activation, precision=5, act_precision=act_precision)
    module = QuantModule(
        network.double(),
        num_classes=10,
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.03),
        regularizer=regularizer,
    )
    recording = Recording()
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy=ddp() if devices > 1 else "auto", precision="64-true",
        max_epochs=6, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False, num_sanity_val_steps=0, default_root_dir=folder,
        callbacks=[PrecisionAdjustment(2), RankAgreement(), recording],
    )  # fmt: skip
    # 101 images: the last step of an epoch has fewer, and not the same number on every rank.
    data = Noise(
        batch_size=images_per_step // devices,
        augment=False,
        limit_train=101,
        val_split=17,
        eval_batch_size=5,
        num_workers=0,
    )
    trainer.fit(module, data)
    measured = trainer.validate(module, data, verbose=False)[0]
    schemes = network.scheme().precisions()
    codes = {name: quantizer.codes() for name, _, quantizer in network.quantizers()}
    result = {"steps": recording.steps, "schemes": schemes, "codes": codes, "val": measured, "world": world_size()}
    torch.save(result, folder / f"rank{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
