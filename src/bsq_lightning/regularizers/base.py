"""The contract of a regularizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping

from torch import Tensor

from bsq_lightning.quantizers import WeightQuantizer


class Regularizer(ABC):
    """A penalty on latents, already multiplied by its strength.

    Law: where ``plane_decay`` answers, its value is ``penalty`` and ``plane_decay[b] * planes[:, b]`` is the gradient
    that autograd finds.

    Args:
        alpha: strength, at least 0; 0 is every sweep's control run.

    Raises:
        ValueError: alpha is negative, not finite or not a number.
    """

    def __init__(self, alpha: float) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha < 0:
            raise ValueError(f"reg.alpha must be a number that is not negative, such as 5e-3, not {alpha!r}")
        self.alpha = float(alpha)

    @abstractmethod
    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        """Raises ValueError if there is nothing here that this penalty acts on (a silent zero would mislead)."""

    @abstractmethod
    def penalty(self, quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        """The penalty as a 0-d tensor, differentiable in the latents."""

    def plane_decay(
        self, quantizers: Mapping[str, WeightQuantizer], squares: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The penalty and a factor for each bit plane by name, if the gradient has that closed form.

        Args:
            quantizers: all of the network, by name.
            squares: ``plane_squares`` of those whose planes are as the last step left them, which has computed it.
        """
        return None
