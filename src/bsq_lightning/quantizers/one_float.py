"""What the methods share that keep one float for each weight, as ordinary quantization-aware training does."""

from abc import ABC
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.quantizers.base import WeightQuantizer, check_precision

SMALLEST_SCALE = 1e-8


class OneFloatQuantizer(WeightQuantizer, ABC):
    """Holds ``latent``, ``[*W.shape]``, and the number of bits. The method says what the latent means.

    Args:
        weight: tensor to start from.
        precision: bits of magnitude; 0, or a tensor of zeros, freezes it at zero.

    Raises:
        ValueError: precision outside 0..16.
    """

    def __init__(self, weight: Tensor, precision: int) -> None:
        super().__init__()
        precision = check_precision("precision", precision, lowest=0)
        self._precision = precision if bool(weight.any()) else 0
        start = weight.detach().clone() if self._precision else torch.zeros_like(weight.detach())
        self.latent = nn.Parameter(start, requires_grad=False)

    @property
    def precision(self) -> int:
        return self._precision

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latent.shape)

    def relaxed(self) -> Tensor | None:
        return self.latent.detach()

    @torch.no_grad()
    def hold_codes_(self, where: Tensor, codes: Tensor) -> None:
        self.latent.copy_(torch.where(where, self._latent_of(codes), self.latent))

    def _latent_of(self, codes: Tensor) -> Tensor:
        """The latent in the middle of each code."""
        return codes * self.step()

    def get_extra_state(self) -> Any:
        return self._precision

    def set_extra_state(self, state: Any) -> None:
        self._precision = check_precision("precision in the checkpoint", state, lowest=0)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        saved: Any = state_dict.get(prefix + "_extra_state", self._precision)
        saved = saved.get("precision") if isinstance(saved, dict) else saved
        check_precision(f"{prefix}precision", saved, lowest=0)  # which names the tensor
        # Whether there is a step for each channel is the checkpoint's to say: a tensor at 0 bits has one in any case.
        channels = (self.shape[0], *[1] * (len(self.shape) - 1)) if self.shape else ()
        for name, parameter in self.named_parameters(recurse=False):
            kept = state_dict.get(prefix + name)
            if name != "latent" and isinstance(kept, Tensor) and tuple(kept.shape) in ((), channels):
                if kept.shape != parameter.shape and tuple(parameter.shape) in ((), channels):
                    parameter.data = parameter.new_empty(kept.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def as_step(step: float | Tensor, like: Tensor) -> Tensor:
    """A given step as a tensor of its own, 0-d or ``[K, 1, ...]``."""
    return step.detach().clone().to(like) if isinstance(step, Tensor) else like.new_tensor(step)
