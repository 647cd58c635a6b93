"""A float teacher: the quantized network learns what the float one says, instead of or beside the labels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bsq_lightning.models.classification import full_precision


class Distillation(nn.Module):
    """``share * T^2 KL(teacher || student, both at temperature T) + (1 - share) * task loss``, mean over images
    (Hinton et al., 2015, arXiv 1503.02531).

    The teacher is in evaluation mode, and no part of a state dict: its weights are the run's float weights, which are
    kept. Its forward pass is made once a batch; it costs about a fifth of a training step.

    Args:
        teacher: a float network of the same classes.
        temperature: T, positive.
        share: of the teacher; 1 leaves the labels out.

    Raises:
        ValueError: a temperature that is not positive, or a share outside (0, 1].

    Example:
        >>> learns = Distillation(nn.Linear(4, 3), temperature=4.0)
        >>> images = torch.randn(2, 4)
        >>> bool(learns(images, learns.teacher(images), task_loss=torch.tensor(1.0)).abs() < 1e-6)
        True
    """

    def __init__(self, teacher: nn.Module, temperature: float = 4.0, share: float = 1.0) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"distill.temperature must be positive, such as 4, not {temperature!r}")
        if not 0 < share <= 1:
            raise ValueError(f"distill.share must be above 0 and at most 1, not {share!r}")
        self.temperature, self.share = float(temperature), float(share)
        self._teacher = [teacher.eval().requires_grad_(False)]  # in a list: not a submodule

    @property
    def teacher(self) -> nn.Module:
        """The float network."""
        return self._teacher[0]

    def forward(self, images: Tensor, logits: Tensor, task_loss: Tensor) -> Tensor:
        """The loss.

        Args:
            images: ``[B, 3, H, W]``, as the student saw them.
            logits: of the student, ``[B, classes]``.
            task_loss: 0-d, of the labels.
        """
        held = next(self.teacher.parameters())
        if (held.device, held.dtype) != (images.device, images.dtype):
            self.teacher.to(images.device, images.dtype)
        with torch.no_grad():
            target = full_precision(self.teacher(images)) / self.temperature
        student = F.log_softmax(full_precision(logits) / self.temperature, 1)
        loss = F.kl_div(student, F.log_softmax(target, 1), log_target=True, reduction="batchmean")
        return self.share * self.temperature**2 * loss + (1 - self.share) * task_loss
