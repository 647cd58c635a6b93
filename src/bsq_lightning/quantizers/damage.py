"""What the rounding of every tensor costs, measured while training at hardly any price."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bsq_lightning.quantizers.base import LatentStep


@dataclass(frozen=True)
class Damage:
    """What rounding cost one tensor, on average over the steps that were measured; ``[K]``, filter by filter.

    Args:
        steps: how many they were.
        product: mean of ``G . e``, with G = dL/dW and ``e = W - u``, W being u rounded.
        error: mean of ``|e|^2``.
        gradient: mean of ``|G|^2``.
    """

    steps: int
    product: Tensor
    error: Tensor
    gradient: Tensor

    @property
    def loss(self) -> float:
        """The part of the loss that this rounding is estimated to be, in units of the loss: ``G . e / 2``."""
        return float(self.product.sum()) / 2


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
        self._epoch: dict[str, Tensor] = {}

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
            rows = (grad * error, error.square(), grad.square())
            sums = [each.reshape(len(each), -1).sum(1).double() for each in rows]
            now = torch.stack([torch.ones_like(sums[0]), *sums])
            self._sums[name] = self._sums[name].to(now) + now if name in self._sums else now

    def begin_epoch(self) -> None:
        """From here on ``of_epoch`` counts."""
        self._epoch = self.mark()

    def of_epoch(self) -> dict[str, Damage]:
        """``since`` the last ``begin_epoch``."""
        return self.since(self._epoch)

    def mark(self) -> dict[str, Tensor]:
        """Where the sums stand, for ``since`` (reads the device)."""
        names = list(self._sums)
        together = torch.cat([self._sums[name] for name in names], 1).cpu() if names else torch.zeros(4, 0)
        parts = together.split([self._sums[name].shape[1] for name in names], 1)
        return {name: part.clone() for name, part in zip(names, parts, strict=True)}

    def since(self, mark: Mapping[str, Tensor]) -> dict[str, Damage]:
        """By tensor, the means since a mark (reads the device); without those that were not measured since."""
        found = {}
        for name, sums in self.mark().items():
            new = sums - mark[name] if name in mark else sums
            if steps := round(float(new[0, 0])):
                found[name] = Damage(steps, *(new[1:] / steps))
        return found

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: a run that resumes measures on."""
        return {"seen": self._seen, "sums": dict(self._sums), "epoch": dict(self._epoch)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores ``state_dict()``."""
        self._seen = int(state["seen"])
        # Checkpoints of before there were sums by filter have one for each tensor: those begin anew.
        self._sums = {name: sums.clone() for name, sums in state["sums"].items() if sums.dim() == 2}
        self._epoch = {name: torch.as_tensor(sums) for name, sums in state["epoch"].items() if name in self._sums}
