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
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from bsq_lightning.distributed import from_rank_zero_, of_all_ranks, sum_over_ranks_
from bsq_lightning.models.classification import classification_loss, full_precision
from bsq_lightning.models.distillation import Distillation
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.evaluating import evaluating
from bsq_lightning.ops.hessian import hessian_traces
from bsq_lightning.ops.streams import stage_seed
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers.damage import Damage
from bsq_lightning.regularizers import Regularizer


@contextmanager
def measuring(module: nn.Module) -> Iterator[None]:
    """Evaluation and inference mode with the weights that are shipped; every submodule gets its own mode back."""
    for submodule in module.modules():
        if isinstance(submodule, QuantizedNetwork):
            submodule.hold_weights_()
    with evaluating(module), torch.inference_mode():
        yield


def _mean() -> MeanMetric:
    """A mean over values. Its check for NaN waits for the device; without it, torchmetrics 1.9 ignores weights."""
    return MeanMetric(nan_strategy="disable")


def _accuracy(num_classes: int, top_k: int = 1) -> MulticlassAccuracy:
    """The share of all images. Its check of the labels may wait for the device; the loss has checked them already."""
    return MulticlassAccuracy(num_classes, average="micro", top_k=top_k, validate_args=False)


class NonFiniteLossError(ValueError):
    """The loss became NaN or infinite."""


#: In every checkpoint of a network with quantized activations, for who opens it without this package.
ACTIVATIONS_APART = (
    "The weights under network.net. load into the plain class, but without the clips and quantizers of activations, "
    "which stand under network.activation_quantizers. and with which the network was trained: its accuracy can be lost."
)


class QuantModule(L.LightningModule):
    """Trains a quantized (or float) network on a classification task.

    ``training_step`` returns the task loss alone; the penalty acts in the optimizer, where the latents are.

    Args:
        network: the network with its quantizers.
        num_classes: classes of the task; top-5 accuracy is added above 10.
        optimizer: builds the torch optimizer from parameters.
        scheduler: builds the learning-rate scheduler, stepped once an epoch; None for a constant rate.
        regularizer: penalty on the latents or on the weights.
        after_step: called with the network after every step of the optimizer.
        mix: mixes the images of a training batch, and their labels into shares ``[B, classes]``
            (``torchvision.transforms.v2.CutMix``); None: as they are.
        distillation: a float teacher, whose loss takes the place of the labels' or joins it; None: labels alone.
        stage: name of the stage; written into every checkpoint.
        seed: torch's generators are set from (seed, stage, epoch, batch, rank) at every step, so that a run that
            resumes anywhere draws what the run that was never stopped draws.

    Under DDP every rank sees its share of the batch. The mean loss is that of the batch of all ranks, shares of
    unequal size included; metrics count every image once; batch norm's running statistics are rank 0's, taken over by
    the others at the end of an epoch, before anything is measured with them.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        *,
        num_classes: int,
        optimizer: Callable[..., Optimizer],
        scheduler: Callable[[Optimizer], Any] | None = None,
        regularizer: Regularizer | None = None,
        after_step: Callable[[QuantizedNetwork], None] | None = None,
        mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
        distillation: Distillation | None = None,
        stage: str = "bits",
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.network = network
        self.stage = stage
        self.seed = seed
        self._optimizer = optimizer
        self._scheduler = scheduler
        self._regularizer = regularizer
        self._after_step = after_step
        self.mix = mix
        self.distillation = distillation
        self._told_epoch = -1
        self.metrics = nn.ModuleDict()
        for split in ("train", "val", "test"):
            self.metrics[f"{split}_loss"] = _mean()
            self.metrics[f"{split}_acc"] = _accuracy(num_classes)
            if num_classes > 10 and split != "train":
                self.metrics[f"{split}_top5"] = _accuracy(num_classes, top_k=5)
        self.metrics["train_penalty"] = _mean()
        # Kept on the device and read on the host only at logging steps, so that no step waits for the check. Not a
        # buffer: each rank has its own.
        self.first_bad_step = torch.tensor(-1)

    def metric(self, name: str) -> Metric:
        """The metric ``{train,val,test}_{loss,acc,top5}`` or ``train_penalty``."""
        metric = self.metrics[name]
        assert isinstance(metric, Metric)
        return metric

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    def loss(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of a batch that training minimises (mean over its images) and the logits; it changes and logs
        nothing. Labels are classes ``[B]``, or shares of classes ``[B, classes]`` of mixed images."""
        images, labels = batch
        loss, logits = classification_loss(self.network(images), labels)
        return loss if self.distillation is None else self.distillation(images, logits, loss), logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        # Where images are mixed, train/acc still counts the label that each image had before.
        loss, logits = self.loss(batch if self.mix is None else self.mix(*batch))
        labels = batch[1]
        first_bad = self.first_bad_step.to(loss.device)
        bad = ~torch.isfinite(loss.detach()) & (first_bad < 0)
        self.first_bad_step = torch.where(bad, self.global_step, first_bad)
        self.metric("train_loss").update(loss.detach().expand(len(labels)))
        self.metric("train_acc").update(logits.detach(), labels)
        for name in ("loss", "acc", *(("penalty",) if self._regularizer else ())):
            shown = name != "penalty"  # which the optimizer's step adds to, below
            self.log(f"train/{name}", self.metric(f"train_{name}"), on_step=False, on_epoch=True, prog_bar=shown)
        return loss * self._share(loss, labels)

    def _share(self, loss: Tensor, labels: Tensor) -> Tensor | float:
        """What a rank's mean loss is multiplied with, so that DDP's mean over ranks is the mean over images."""
        if self.trainer.world_size == 1 or not self.trainer.is_last_batch:
            return 1.0  # only the last batch of an epoch can be shared unequally
        size = loss.new_full((), len(labels))  # which does not wait for the device
        return size * self.trainer.world_size / sum_over_ranks_(size.clone())

    def _evaluation_step(self, batch: tuple[Tensor, Tensor], split: str) -> None:
        images, labels = batch
        logits = full_precision(self.network(images))
        self.metric(f"{split}_loss").update(F.cross_entropy(logits, labels, reduction="none"))
        for name in ("loss", "acc", "top5"):
            if f"{split}_{name}" in self.metrics:
                metric = self.metric(f"{split}_{name}")
                if name != "loss":
                    metric.update(logits, labels)
                self.log(f"{split}/{name}", metric, on_epoch=True, prog_bar=name == "acc")

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluation_step(batch, "val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._evaluation_step(batch, "test")

    def configure_optimizers(self) -> Any:
        if self.network.names():
            optimizer: Optimizer = LatentOptimizer(self.network, self._optimizer, self._regularizer, self._after_step)
        else:
            optimizer = self._optimizer([p for p in self.network.parameters() if p.requires_grad])
        if self._scheduler is None:
            return optimizer
        scheduler = self._scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau would choose by validation images; use a schedule by epochs")
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        optimizer = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimizer, LatentOptimizer) and optimizer.penalty is not None:
            self.metric("train_penalty").update(optimizer.penalty)

    def on_train_epoch_start(self) -> None:
        self.network.forget_ranges_()
        optimizer = self.optimizers(use_pl_optimizer=False)
        if isinstance(optimizer, LatentOptimizer):
            optimizer.damage.begin_epoch()

    def damage(self) -> dict[str, Damage]:
        """What rounding costs every tensor, as measured in this epoch so far (reads the device)."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        return optimizer.damage.of_epoch() if isinstance(optimizer, LatentOptimizer) else {}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Here and not at the epoch's start, which a run that resumes within an epoch does not come by.
        if self._told_epoch != self.current_epoch:
            self._tell_progress()
        key = (stage_seed(self.seed, self.stage) * 1_000_003 + self.current_epoch) * 1_000_003 + batch_idx
        torch.manual_seed((key * 1_000_003 + self.global_rank) % 2**63)
        # Micro-batches that are accumulated are of one step, and so of one draw.
        if batch_idx % self.trainer.accumulate_grad_batches == 0 and not self.network.exact:
            self.network.write_training_weights_(torch.Generator().manual_seed((key * 1_000_003 - 1) % 2**63))

    def _tell_progress(self) -> None:
        self._told_epoch, last = self.current_epoch, (self.trainer.max_epochs or 1) - 1
        progress = self.current_epoch / last if last > 0 else 1.0
        self.network.on_epoch(progress)
        if self._regularizer is not None:
            self._regularizer.on_epoch(progress)

    def begin_interval(self, batch: Callable[[], tuple[Tensor, Tensor]]) -> None:
        """Lets the regularizer decide what holds until the next adjustment (every rank must call this).

        Args:
            batch: gives training images, the same on all ranks, where the decision needs the loss.
        """
        if self._regularizer is not None:
            quantizers = {name: quantizer for name, _, quantizer in self.network.quantizers()}
            self._regularizer.begin_interval(quantizers, lambda: self.hessian_traces(batch()))

    def hessian_traces(self, batch: tuple[Tensor, Tensor], samples: int = 4) -> dict[str, float]:
        """The trace of the Hessian of a batch's loss over every quantized tensor, by Hutchinson's estimate, in
        evaluation mode and the same on all ranks; nothing is changed."""
        tensors = {name: parameter for name, parameter, _ in self.network.quantizers()}
        generator = torch.Generator().manual_seed(stage_seed(self.seed, self.stage) + self.current_epoch)
        # A compiled graph cannot be differentiated twice.
        with evaluating(self.network), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            traces = hessian_traces(self.loss(batch)[0], list(tensors.values()), generator, samples)
        return dict(zip(tensors, from_rank_zero_(traces).tolist(), strict=True))

    def on_after_backward(self) -> None:
        self.network.drop_resting_gradients_()

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.trainer.is_last_batch:  # type: ignore[attr-defined]
            for buffer in self.network.buffers():
                from_rank_zero_(buffer)
        if self.trainer.is_last_batch or (batch_idx + 1) % self.trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self.check_finite()
        if self.trainer.is_last_batch:  # type: ignore[attr-defined]
            self._check_last_step()

    def _check_last_step(self) -> None:
        """What the last step of an epoch has broken no further loss would tell before it is saved and measured."""
        names, parameters = zip(*self.network.named_parameters(), strict=True)
        finite = torch.stack([torch.isfinite(parameter.detach()).all() for parameter in parameters]).tolist()
        if not all(finite):
            raise NonFiniteLossError(
                f"{names[finite.index(False)]} became NaN or infinite in the last step of epoch "
                f"{self.current_epoch + 1} of stage {self.stage}: {self._remedy()}. Any checkpoint is from before."
            )

    def _remedy(self) -> str:
        return (
            f"lower its learning rate (stages.{self.stage}.optimizer.lr, or quant.stages.{self.stage}.optimizer.lr "
            "where a method has its own) or alpha"
        )

    def training_metrics(self) -> dict[str, dict[str, Tensor]]:
        """The training metrics of the epoch so far, each state ``[ranks, ...]`` (every rank must call this)."""
        return {
            name: {key: of_all_ranks(torch.as_tensor(value)) for key, value in metric.metric_state.items()}
            for name, metric in self._training_metrics()
        }

    def continue_training_metrics(self, state: dict[str, dict[str, Tensor]]) -> None:
        """Goes on from ``training_metrics()`` of as many ranks."""
        for name, metric in self._training_metrics():
            for key, ranks in state[name].items():
                setattr(metric, key, ranks[self.global_rank].to(self.device))

    def _training_metrics(self) -> Iterator[tuple[str, Metric]]:
        return ((name, self.metric(name)) for name in self.metrics if name.startswith("train"))

    def check_finite(self) -> None:
        """Raises NonFiniteLossError naming the first bad step, if there was one (reads the device)."""
        step = int(self.first_bad_step)
        if step >= 0:
            raise NonFiniteLossError(
                f"the loss became NaN or infinite at step {step} of stage {self.stage}: {self._remedy()}. Any "
                "checkpoint is from before that step."
            )

    def on_validation_epoch_start(self) -> None:
        self.network.check_weights()

    def on_test_epoch_start(self) -> None:
        self.network.check_weights()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.check_finite()
        self.network.check_weights()
        checkpoint["stage"] = self.stage
        if self.network.activation_quantizers:
            checkpoint["note"] = ACTIVATIONS_APART
