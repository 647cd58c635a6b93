"""The lists that drive the laws: a new implementation is one row here."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, WeightQuantizer
from bsq_lightning.regularizers import BitGroupLasso, Regularizer

QUANTIZERS: dict[str, Callable[..., WeightQuantizer]] = {
    "bit_plane": BitPlaneQuantizer,
    "bit_plane_reference": partial(BitPlaneQuantizer, clip_always=True, min_precision=1),
    "latent_scale": LatentQuantizer,
    "latent_weight": partial(LatentQuantizer, step="mse", units="weight"),
}

REGULARIZERS: dict[str, Callable[..., Regularizer]] = {
    "bit_group_lasso": BitGroupLasso,
}


class TinyNet(nn.Module):
    """Two convolutions with batch norm and a linear layer; enough for every kind of tensor."""

    relu_per_use = True

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 6, 3, padding=1)
        self.relu2 = nn.ReLU()
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        return self.fc(self.relu2(self.conv2(x)).mean((2, 3)))


def batch(n: int = 8, size: int = 6, classes: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 3, size, size, dtype=dtype), torch.randint(0, classes, (n,))
