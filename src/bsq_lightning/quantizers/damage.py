"""What the rounding of every tensor costs, measured while training at hardly any price."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bsq_lightning.quantizers.base import LatentStep


@dataclass(frozen=True)
class Damage:
    """What rounding cost one tensor, on average over the steps that were measured.

    Args:
        steps: how many they were.
        product: mean of ``G . e``, with G = dL/dW and ``e = W - u``, W being u rounded.
        error: mean of ``|e|^2``.
        gradient: mean of ``|G|^2``.
    """

    steps: int
    product: float
    error: float
    gradient: float

    @property
    def loss(self) -> float:
        """The part of the loss that this rounding is estimated to be, in units of the loss: ``G . e / 2``."""
        return self.product / 2


class RoundingDamage:
    """Sums ``G . e`` over training steps, for every tensor that rounds a real one.

    To second order the loss at W is that at u plus ``e'He / 2``, where training has brought u to rest. The gradient
    that training computes anyway is taken at W: ``G = g + He``, with g that at u, which is zero on average there. So
    ``E[G . e] = e'He``: one dot product tells twice the loss that the rounding costs. A single step says little
    (signal and noise are alike); the mean of some tens does.

    Args:
        every: measures every so many steps.

    Raises:
        ValueError: an interval that is not positive.

    Example:
        >>> import torch
        >>> from bsq_lightning.quantizers import LatentQuantizer
        >>> quantizer = LatentQuantizer(torch.tensor([0.75, -0.5]), precision=1, step=0.5, units="weight")
        >>> quantizer.latent.data = torch.tensor([0.4, -0.3])  # rounded to 0.5 and -0.5
        >>> damage = RoundingDamage(every=1)
        >>> damage.add_({"layer": LatentStep(quantizer, quantizer.weight(), torch.tensor([1.0, -1.0]), {})})
        >>> round(damage.since({})["layer"].loss, 3)
        0.15
    """

    def __init__(self, every: int = 8) -> None:
        if every < 1:
            raise ValueError(f"damage is measured every so many steps, at least 1, not {every}")
        self.every = every
        self._seen = 0
        self._sums: dict[str, Tensor] = {}
        self._epoch: dict[str, list[float]] = {}

    @torch.no_grad()
    def add_(self, steps: Mapping[str, LatentStep]) -> None:
        """Adds a step of all tensors, before their latents move; nothing is read from the device."""
        self._seen += 1
        if self._seen % self.every:
            return
        for name, step in steps.items():
            relaxed = step.quantizer.relaxed()
            if relaxed is None:
                continue
            error, grad = step.weight - relaxed, step.grad
            sums = (torch.ones((), device=grad.device), (grad * error).sum(), error.square().sum(), grad.square().sum())
            now = torch.stack([each.double() for each in sums])
            self._sums[name] = self._sums[name].to(now) + now if name in self._sums else now

    def begin_epoch(self) -> None:
        """From here on ``of_epoch`` counts."""
        self._epoch = self.mark()

    def of_epoch(self) -> dict[str, Damage]:
        """``since`` the last ``begin_epoch``."""
        return self.since(self._epoch)

    def mark(self) -> dict[str, list[float]]:
        """Where the sums stand, for ``since`` (reads the device)."""
        names = list(self._sums)
        rows = torch.stack([self._sums[name] for name in names]).tolist() if names else []
        return dict(zip(names, rows, strict=True))

    def since(self, mark: Mapping[str, Iterable[float]]) -> dict[str, Damage]:
        """By tensor, the means since a mark (reads the device); without those that were not measured since."""
        found = {}
        for name, sums in self.mark().items():
            steps, *rest = (now - then for now, then in zip(sums, mark.get(name, [0.0] * 4), strict=True))
            if steps:
                found[name] = Damage(round(steps), *(value / steps for value in rest))
        return found

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a run that resumes measures on."""
        return {"seen": self._seen, "sums": dict(self._sums), "epoch": dict(self._epoch)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict()``."""
        self._seen = int(state["seen"])
        self._sums = {name: sums.clone() for name, sums in state["sums"].items()}
        self._epoch = dict(state["epoch"])
