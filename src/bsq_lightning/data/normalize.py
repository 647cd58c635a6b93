"""Pixels to what a network takes."""

from collections.abc import Sequence

import torch
from torch import Tensor


class Normalize:
    """Pixels 0..255 to float32 with given mean and standard deviation per channel, both for a scale of 0..1.

    Shape: uint8 ``[B, C, H, W]`` to float32 ``[B, C, H, W]``.

    Args:
        mean: per channel, on a scale of 0..1.
        std: per channel, on a scale of 0..1.

    Example:
        >>> Normalize([0.5], [0.25])(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)).flatten()
        tensor([-2.,  2.])
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        channels = (len(mean), 1, 1)
        self.scale = 1 / (255 * torch.tensor(std, dtype=torch.float32)).view(channels)
        self.offset = -255 * torch.tensor(mean, dtype=torch.float32).view(channels) * self.scale

    def to(self, device: torch.device) -> "Normalize":
        """The same on another device; this one stays, because loading processes hold it."""
        other = object.__new__(Normalize)
        other.scale, other.offset = self.scale.to(device), self.offset.to(device)
        return other

    def __call__(self, pixels: Tensor) -> Tensor:
        return pixels.float().mul_(self.scale).add_(self.offset)
