"""The LightningModule: network, loss, metrics, optimizer. One for all stages and all methods."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer, Penalty

STAGES = ("float", "bits", "finetune")
AUXILIARY_WEIGHT = 0.4  # of Inception's second head (Szegedy et al., 2016, as torchvision's recipe has it)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients; every submodule gets its own mode back."""
    modes = {submodule: submodule.training for submodule in module.modules()}
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for submodule, training in modes.items():
            submodule.training = training


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite."""


class QuantModule(L.LightningModule):
    """Trains a quantized (or float) network on a classification task.

    ``training_step`` returns the task loss alone; the penalty acts in the optimizer, where the latents are.

    Args:
        network: the network with its quantizers.
        num_classes: classes of the task; top-5 accuracy is added above 10.
        optimizer: builds the torch optimizer from parameters.
        scheduler: builds the learning-rate scheduler, stepped once an epoch; None for a constant rate.
        regularizer: penalty on the latents.
        stage: ``float``, ``bits`` or ``finetune``; written into every checkpoint.
        seed: torch's generators are set from (seed, stage, epoch) at the start of every epoch, so that a run that
            resumes there draws what the run that was never stopped draws.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        *,
        num_classes: int,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        regularizer: Penalty | None = None,
        stage: str = "bits",
        seed: int = 1,
    ) -> None:
        super().__init__()
        if stage not in STAGES:
            raise ValueError(f"stage is one of {', '.join(STAGES)}, not {stage!r}")
        self.network = network
        self.stage = stage
        self.seed = seed
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._regularizer = regularizer
        self.metrics = nn.ModuleDict()
        for split in ("train", "val", "test"):
            self.metrics[f"{split}_acc"] = MulticlassAccuracy(num_classes, average="micro")
            if num_classes > 10 and split != "train":
                self.metrics[f"{split}_top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        # Kept on the device and read on the host only at logging steps, so that no step waits for the check.
        self.register_buffer("first_bad_step", torch.tensor(-1), persistent=False)

    def metric(self, name: str) -> Metric:
        """The metric ``{train,val,test}_{acc,top5}``."""
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        return metric

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch
        output = self.network(images)
        logits = output if isinstance(output, Tensor) else output.logits
        loss = F.cross_entropy(logits.float(), labels)
        if not isinstance(output, Tensor) and output.aux_logits is not None:
            loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(output.aux_logits.float(), labels)
        bad = ~torch.isfinite(loss.detach()) & (self.first_bad_step < 0)
        self.first_bad_step = torch.where(bad, self.global_step, self.first_bad_step)
        self.metrics["train_acc"](logits.detach(), labels)
        self.log("train/loss", loss.detach(), on_step=False, on_epoch=True, prog_bar=True)
        self.log("train/acc", self.metric("train_acc"), on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def _evaluation_step(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        images, labels = batch
        logits = self.network(images).float()
        self.log(f"{split}/loss", F.cross_entropy(logits, labels), on_epoch=True, batch_size=len(labels))
        for name in ("acc", "top5"):
            if f"{split}_{name}" in self.metrics:
                metric = self.metric(f"{split}_{name}")
                metric(logits, labels)
                self.log(f"{split}/{name}", metric, on_epoch=True, prog_bar=name == "acc")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluation_step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluation_step(batch, "test")

    def configure_optimizers(self) -> Any:
        if self.network.names():
            optimizer: Optimizer = LatentOptimizer(self.network, self._optimizer, self._regularizer)
        else:
            optimizer = self._optimizer([p for p in self.network.parameters() if p.requires_grad])
        if self._scheduler is None:
            return optimizer
        scheduler = self._scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau would choose by validation images; use a schedule by epochs")
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def on_train_epoch_start(self) -> None:
        self.network.forget_ranges_()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            key = (self.seed * len(STAGES) + STAGES.index(self.stage)) * 1_000_003 + self.current_epoch
            torch.manual_seed(key)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        penalty = optimizer.penalty if isinstance(optimizer, LatentOptimizer) else None
        if penalty is not None:
            self.log("train/penalty", penalty, on_step=False, on_epoch=True)
        if self.trainer.is_last_batch or (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.check_finite()

    def check_finite(self) -> None:
        """Raises NonFiniteLossError naming the first bad step, if there was one (reads the device)."""
        step = int(self.first_bad_step)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss became NaN or infinite at step {step} of stage {self.stage}: lower its learning rate "
                f"(stages.{self.stage}.optimizer.lr) or alpha. Any checkpoint is from before that step."
            )

    def on_validation_epoch_start(self) -> None:
        self.network.check_weights()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        self.network.check_weights()
        checkpoint["stage"] = self.stage
