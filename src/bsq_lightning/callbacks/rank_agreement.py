"""Proof, at every epoch's end, that all ranks hold the same network and were fed from the same data."""

from typing import Any

import lightning as L
import torch
from torch import Tensor

from bsq_lightning.data import ImageDataModule
from bsq_lightning.distributed import checksum, of_all_ranks
from bsq_lightning.module import QuantModule


class RankMismatchError(ValueError):
    """The ranks of a run hold or see different things."""


class RankAgreement(L.Callback):
    """Compares checksums over ranks: of the data before the first step, of all weights and latents after every epoch,
    before and after its adjustment; after it also of batch norm's statistics.

    DDP averages gradients and nothing else; that planes, scales and precisions stay equal follows from equal
    arithmetic. Where it does not (a defective device, another library version on one host), training would go on with
    as many networks as ranks. It stands behind the precision adjustment and before the checkpoint, so that no
    checkpoint holds a network that only one rank has. One process alone compares nothing.

    Raises:
        RankMismatchError: names what differs, and on which ranks.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if trainer.world_size > 1 and isinstance(data, ImageDataModule):
            mark = torch.tensor([data.fingerprint()], device=pl_module.device)
            _compare(mark, ["the images or their split"], "Give every host the same data.root.")

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # An adjustment rounds planes to whole bits and would hide what has begun to drift.
        # Statistics are each rank's own until the batch has ended.
        if trainer.is_last_batch:
            self._compare_networks(trainer, pl_module, statistics=False)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._compare_networks(trainer, pl_module, statistics=True)

    def _compare_networks(self, trainer: L.Trainer, pl_module: L.LightningModule, statistics: bool) -> None:
        assert isinstance(pl_module, QuantModule)
        if trainer.world_size == 1:
            return
        network = pl_module.network
        tensors: dict[str, Tensor] = {name: parameter for name, parameter in network.named_parameters()}
        if statistics:
            tensors |= {f"net.{name}": buffer for name, buffer in network.net.named_buffers()}
        bits = torch.tensor([quantizer.precision for _, _, quantizer in network.quantizers()], device=pl_module.device)
        marks = torch.stack([checksum(bits), *map(checksum, tensors.values())])
        _compare(marks, ["the precisions", *tensors], f"The checkpoint of epoch {trainer.current_epoch} is whole.")


def _compare(marks: Tensor, names: list[str], remedy: str) -> None:
    """``marks [n]`` of every rank, the thing behind each mark called by ``names``."""
    everyones = of_all_ranks(marks).cpu()
    unequal = (everyones != everyones[0]).any(dim=0).nonzero().flatten().tolist()
    if unequal:
        first = unequal[0]
        ranks = (everyones[:, first] != everyones[0, first]).nonzero().flatten().tolist()
        raise RankMismatchError(
            f"ranks disagree: {names[first]} of rank {', '.join(map(str, ranks))} differ from those of rank 0 "
            f"({len(unequal)} of {len(names)} checked things differ). {remedy}"
        )
