"""The contract of a weight quantizer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from bsq_lightning.ops.bit_planes import MAX_PRECISION


def check_precision(name: str, value: int, lowest: int = 1) -> int:
    """Returns ``value`` if it is a whole number of bits in range, else says what is allowed.

    Raises:
        ValueError: not an integer in ``lowest..MAX_PRECISION``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= MAX_PRECISION:
        raise ValueError(f"{name} must be a whole number of bits from {lowest} to {MAX_PRECISION}, not {value!r}")
    return value


class LatentStep(NamedTuple):
    """What the optimizer hands to a quantizer that steps its latents itself.

    Args:
        quantizer: the quantizer.
        weight: W as the network used it.
        grad: G, shape of W.
        state: the optimizer's state of this tensor, empty after an adjustment.
        plane_decay: ``[n]``, a closed-form penalty whose gradient is ``plane_decay[b] * planes[:, b]``; or None.
        penalty_gradients: gradients of any other penalty, shaped as ``latents()``; or None.
    """

    quantizer: Any
    weight: Tensor
    grad: Tensor
    state: dict[str, Any]
    plane_decay: Tensor | None = None
    penalty_gradients: Sequence[Tensor] | None = None


class WeightQuantizer(nn.Module, ABC):
    """Owns the latents of one weight tensor W of a plain network, outside the autograd graph.

    The network computes with W and autograd gives G = dL/dW; the optimizer turns G into a step of the latents and
    then asks for the new W. Latents are Parameters without ``requires_grad``, so they are in the state dict and DDP
    broadcasts them once, but no bucket and no graph holds them.

    Laws (``tests/quantizers/test_laws.py`` holds every implementation to them):
        ``weight() == codes() * step()``, with integer codes;
        a step with gradient G moves the latents as autograd through the straight-through form would;
        ``project_`` twice is ``project_`` once, ``adjust_precision_`` twice is once and moves no weight;
        a state dict loads into a quantizer of any precision and gives the same codes.
    """

    scale: nn.Parameter

    @property
    @abstractmethod
    def precision(self) -> int:
        """Bits of magnitude now; the sign is not counted. 0 means that the whole tensor is zero."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of W."""

    @abstractmethod
    def codes(self) -> Tensor:
        """Signed integer codes as floats, shape of W."""

    def step(self) -> Tensor:
        """Value of one code, ``scale / (2^n - 1)``; 0 at 0 bits."""
        return self.scale.detach() / (2**self.precision - 1) if self.precision else self.scale.detach() * 0

    def weight(self) -> Tensor:
        """W, exactly ``codes() * step()``."""
        return self.codes() * self.step()

    @abstractmethod
    def latents(self) -> Sequence[nn.Parameter]:
        """What is trained in place of W."""

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        """Gradients of ``latents()``, in order, from W and G. Not asked of a quantizer that ``steps_itself``."""
        raise NotImplementedError

    steps_itself = False
    """True if ``sgd_steps_`` replaces the configured torch optimizer for the latents."""

    @classmethod
    def sgd_steps_(cls, steps: Sequence[LatentStep], hyper: Mapping[str, float]) -> None:
        """One step of SGD on the latents of all quantizers of this class, which also projects them and writes W.

        Args:
            steps: one for each quantizer.
            hyper: ``lr``, ``momentum`` and ``weight_decay``.
        """
        raise NotImplementedError

    def project_(self) -> None:  # noqa: B027
        """Brings the latents back into their range; called after every step that the quantizer does not take itself."""

    def adjust_precision_(self) -> None:  # noqa: B027
        """Re-quantizes and drops what is empty; W does not change. Only some methods do this."""
