"""The contract of a weight quantizer."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bsq_lightning.ops.bit_planes import MAX_PRECISION
from bsq_lightning.quantized_tensor import QuantizedTensor


def check_precision(name: str, value: int, lowest: int = 1) -> int:
    """Returns ``value`` if it is a whole number of bits in range, else says what is allowed.

    Raises:
        ValueError: not an integer in ``lowest..MAX_PRECISION``.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= MAX_PRECISION:
        raise ValueError(f"{name} must be a whole number of bits from {lowest} to {MAX_PRECISION}, not {value!r}")
    return value


@dataclass
class LatentStep:
    """One step of one tensor, between the backward pass and the optimizer; a penalty adds its gradient here.

    Args:
        quantizer: the quantizer.
        weight: W as the network used it.
        grad: G, shape of W. A penalty on W adds to it, in a tensor of its own.
        state: the optimizer's state of this tensor, empty after an adjustment.
        decay: a closed form that the quantizer takes in place of ``penalty_gradients`` (bit planes: ``[n]``, where the
            gradient of plane b is ``decay[b]`` times the plane); or None.
        penalty_gradients: gradients of a penalty on the latents, shaped as ``latents()``; or None.
    """

    quantizer: Any
    weight: Tensor
    grad: Tensor
    state: dict[str, Any]
    decay: Tensor | None = None
    penalty_gradients: Sequence[Tensor] | None = None


class LatentRate(NamedTuple):
    """How the optimizer treats one latent: ordinary settings of a param group.

    Args:
        lr_factor: times the learning rate of the weights.
        weight_decay: its own; None takes that of the weights.
    """

    lr_factor: float = 1.0
    weight_decay: float | None = None


@dataclass(frozen=True)
class Adjustment:
    """What a quantizer did at a precision adjustment.

    Args:
        may_move: why W may have changed; empty if it must not have.
        forget_momentum: whether the momentum of all parameters is to be dropped.
        audit: what the audit keeps of this tensor, beside its bits; plain numbers and lists.
    """

    may_move: str = ""
    forget_momentum: bool = False
    audit: Mapping[str, Any] = field(default_factory=dict)


class WeightQuantizer(nn.Module, ABC):
    """Owns the latents of one weight tensor W of a plain network, outside the autograd graph.

    The network computes with W and autograd gives G = dL/dW; the optimizer turns G into a step of the latents and
    then asks for the new W. Latents are Parameters without ``requires_grad``, so they are in the state dict and DDP
    broadcasts them once, but no bucket and no graph holds them.

    A method that trains with another W than the one it will ship (soft bits, random grids) returns it from
    ``training_weight``; then the network holds that one in training and ``weight()`` in all else.

    Laws (``tests/quantizers/test_laws.py`` holds every implementation to them):
        ``weight()`` equals ``tensor().dequantize()``, bit for bit;
        a step with gradient G moves the latents as autograd through the relaxed form would;
        ``project_`` twice is ``project_`` once, ``adjust_precision_`` twice is once (where a method drops bits one by
        one: once it has none to drop);
        an adjustment moves no weight, or says why it may;
        a state dict loads into a quantizer of any precision and gives the same codes.
    """

    scale: nn.Parameter

    own_penalty = "none"
    """Name of the penalty that is made for this method, with which those of other methods refuse it."""

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
        """Value of one code, broadcastable to W: ``scale / (2^n - 1)``; 0 at 0 bits."""
        return self.scale.detach() / (2**self.precision - 1) if self.precision else self.scale.detach() * 0

    def weight(self) -> Tensor:
        """W, exactly ``codes() * step()``: what is evaluated, counted and shipped."""
        return self.codes() * self.step()

    def tensor(self) -> QuantizedTensor:
        """What this tensor is, for all that comes after training."""
        return QuantizedTensor(self.codes().to(torch.int32), self.step(), self.precision)

    def relaxed(self) -> Tensor | None:
        """The real tensor that ``weight()`` rounds, shape of W; None where there is none (soft bits, random grids)."""
        return None

    @property
    def exact(self) -> bool:
        """Whether training computes with ``weight()`` itself now."""
        return True

    def training_weight(self, generator: torch.Generator) -> Tensor:
        """The W that training computes with while this is not ``exact``; ``generator`` is the same on all ranks."""
        return self.weight()

    def on_epoch(self, progress: float) -> None:  # noqa: B027
        """Called before every epoch of a stage: sets temperatures and the like by ``progress``, from 0 at the first
        epoch to 1 at the last. What it sets follows from ``progress`` alone, so that a resumed run has it too."""

    def rests(self) -> Tensor | None:
        """Where W is zero and no gradient says anything, bool, broadcastable to W; None: nowhere. Gradients there are
        dropped before they are clipped."""
        return None

    @abstractmethod
    def latents(self) -> Sequence[nn.Parameter]:
        """What is trained in place of W."""

    def latent_rates(self) -> Sequence[LatentRate]:
        """For each of ``latents()``, in order, its learning rate and weight decay relative to the weights'."""
        return [LatentRate()] * len(self.latents())

    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        """Gradients of ``latents()``, in order, from W as training used it and G. Not asked of a quantizer that
        ``steps_itself``."""
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

    def hold_codes_(self, where: Tensor, codes: Tensor) -> None:
        """Sets the latents of some weights so that their codes are ``codes``, and in the middle of those.

        Args:
            where: bool, shape of W.
            codes: as ``codes()`` gives them; read only ``where``.

        Raises:
            ValueError: this method has no single float behind each code.
        """
        raise ValueError(f"{type(self).__name__} has no float behind each code that could be held")

    def adjust_precision_(self, bits: int | None = None) -> Adjustment:
        """Re-quantizes and drops what is empty, or goes to ``bits``; only some methods do either.

        Raises:
            ValueError: this method cannot be brought to a number of bits.
        """
        if bits is not None and bits != self.precision:
            raise ValueError(f"{type(self).__name__} keeps its {self.precision} bits and cannot be brought to {bits}")
        return Adjustment()
