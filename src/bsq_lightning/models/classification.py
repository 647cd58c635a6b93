"""The task loss of whatever a classification network returns."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

AUXILIARY_WEIGHT = 0.4  # of Inception's second head (Szegedy et al., 2016, as torchvision's recipe has it)


def full_precision(logits: Tensor) -> Tensor:
    """In 32 bits at least; 64 stay 64."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def classification_loss(output: Any, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean cross entropy and the logits ``[B, classes]``.

    Args:
        output: logits; or torchvision's named tuple of Inception and GoogLeNet in training, whose auxiliary logits
            count 0.4.
        labels: ``[B]``.

    Example:
        >>> loss, logits = classification_loss(torch.zeros(2, 4), torch.tensor([0, 3]))
        >>> round(float(loss), 4), logits.shape
        (1.3863, torch.Size([2, 4]))
    """
    logits = output if isinstance(output, Tensor) else output.logits
    loss = F.cross_entropy(full_precision(logits), labels)
    if not isinstance(output, Tensor) and output.aux_logits is not None:
        loss = loss + AUXILIARY_WEIGHT * F.cross_entropy(full_precision(output.aux_logits), labels)
    return loss, logits
