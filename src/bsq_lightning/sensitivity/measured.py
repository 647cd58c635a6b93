"""The loss itself, measured with one tensor quantized at a time: no model of the curvature, one pass for each cell."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsq_lightning.ops.evaluating import evaluating
from bsq_lightning.ops.uniform import quantize
from bsq_lightning.sensitivity.base import (
    Batch,
    CostTable,
    NamedWeights,
    check_bits,
    split_batch,
    squared_errors,
)


class Measured:
    """``cost_l(n)``: how much the loss rises when W_l alone is rounded to n bits, at the step of least squared error.

    The loss is the divergence ``KL(p_float || p_quantized)`` of the outputs, which needs no labels, is never negative
    and is what ``Fisher`` models; or the cross-entropy at the labels of ``batches``, which may fall.

    Args:
        bits: numbers of bits of magnitude to look at.
        labels: ``own`` for the divergence, ``data`` for the cross-entropy.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, bits: Sequence[int] = range(1, 9), labels: str = "own") -> None:
        if labels not in ("own", "data"):
            raise ValueError(f"labels is own or data, not {labels!r}")
        self.bits, self.labels = check_bits(bits), labels

    @torch.no_grad()
    def __call__(self, net: nn.Module, weights: NamedWeights, batches: Iterable[Batch]) -> CostTable:
        """The table; all batches are kept in memory."""
        held = [split_batch(batch, net) for batch in batches]
        if not held:
            raise ValueError("sensitivity needs at least one batch of images")
        if self.labels == "data" and any(labels is None for _, labels in held):
            raise ValueError("labels=data needs batches of (images, labels); labels=own does without")
        _, steps = squared_errors(weights, self.bits)
        costs = torch.zeros_like(steps)
        with evaluating(net):
            float_outputs = [net(images).log_softmax(1) for images, _ in held]
            before = self._loss(float_outputs, held, float_outputs)
            for i, (_, weight) in enumerate(weights):
                original = weight.detach().clone()
                try:
                    for j, n in enumerate(self.bits):
                        weight.copy_(
                            quantize(original, float(steps[i, j]), n) * float(steps[i, j]) if n else 0 * original
                        )
                        outputs = [net(images).log_softmax(1) for images, _ in held]
                        costs[i, j] = self._loss(outputs, held, float_outputs) - before
                finally:
                    weight.copy_(original)
        return CostTable(
            tuple(name for name, _ in weights), tuple(w.numel() for _, w in weights), self.bits, costs, steps
        )

    def _loss(self, outputs: list[Tensor], held: list[tuple[Tensor, Tensor | None]], floats: list[Tensor]) -> float:
        total, count = 0.0, 0
        for logits, (images, labels), target in zip(outputs, held, floats, strict=True):
            if self.labels == "own":
                loss = F.kl_div(logits.double(), target.double(), log_target=True, reduction="sum")
            else:
                assert labels is not None
                loss = F.nll_loss(logits.double(), labels, reduction="sum")
            total, count = total + float(loss), count + len(images)
        return total / count
