"""The contract of a regularizer."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bsq_lightning.quantizers import LatentStep, WeightQuantizer


class Regularizer(ABC):
    """A penalty on latents or on weights, already multiplied by its strength.

    ``penalty`` says what it is; its gradient joins a step through ``add_gradient_``, by autograd unless a closed form
    replaces it. A penalty on weights (``on_weights``) sees W where the others see latents, and its gradient joins G:
    it works with every quantizer, and bit planes keep their fused step.

    Laws (``tests/regularizers/test_laws.py`` holds every implementation to them):
        ``add_gradient_`` returns the value of ``penalty`` and adds the gradient that autograd finds.

    Args:
        alpha: strength, at least 0; 0 is every sweep's control run.

    Raises:
        ValueError: alpha is negative, not finite or not a number.
    """

    on_weights = False
    """Whether the penalty is a function of the weights alone."""

    def __init__(self, alpha: float) -> None:
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha < 0:
            raise ValueError(f"reg.alpha must be a number that is not negative, such as 5e-3, not {alpha!r}")
        self.alpha = float(alpha)

    @abstractmethod
    def check(self, quantizers: Mapping[str, WeightQuantizer]) -> None:
        """Raises ValueError if there is nothing here that this penalty acts on (a silent zero would mislead)."""

    def instead(self, quantizers: Mapping[str, WeightQuantizer]) -> str:
        """What to use in place of this penalty with these quantizers, for the message of ``check``."""
        names = dict.fromkeys(quantizer.own_penalty for quantizer in quantizers.values())
        return f"use reg={' or reg='.join(names) or 'none'} with this quantizer"

    def penalty(self, quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        """The penalty as a 0-d tensor, differentiable in the latents. One ``on_weights`` has ``weight_penalty``."""
        raise NotImplementedError

    def weight_penalty(self, weights: Mapping[str, Tensor], quantizers: Mapping[str, WeightQuantizer]) -> Tensor:
        """The penalty as a 0-d tensor, differentiable in ``weights``; ``quantizers`` tell codes, steps and bits."""
        raise NotImplementedError

    def on_epoch(self, progress: float) -> None:  # noqa: B027
        """Called before every epoch of a stage, with ``progress`` from 0 at the first to 1 at the last."""

    def begin_interval(  # noqa: B027
        self, quantizers: Mapping[str, WeightQuantizer], traces: Callable[[], Mapping[str, float]]
    ) -> None:
        """Called when the training of an adjusted stage begins and after every adjustment, with all tensors: the place
        for what needs them together, such as a target of size. It must leave its decision in the quantizers' state,
        where a resumed run finds it.

        Args:
            quantizers: by name.
            traces: computes the trace of the loss's Hessian over each tensor, by name; costs some training steps.
        """

    def add_gradient_(self, steps: Mapping[str, LatentStep]) -> Tensor:
        """Adds the penalty's gradient to every step, by name of its tensor; returns the penalty."""
        quantizers = {name: step.quantizer for name, step in steps.items()}
        if self.on_weights:
            weights = {name: step.weight.detach().requires_grad_(True) for name, step in steps.items()}
            with torch.enable_grad():
                penalty = self.weight_penalty(weights, quantizers)
                grads = _gradients(penalty, list(weights.values()))
            for step, grad in zip(steps.values(), grads, strict=True):
                step.grad = step.grad + grad
            return penalty.detach()
        latents = {name: list(quantizer.latents()) for name, quantizer in quantizers.items()}
        flat = [latent for group in latents.values() for latent in group]
        try:
            for latent in flat:
                latent.requires_grad_(True)
            with torch.enable_grad():
                penalty = self.penalty(quantizers)
                remaining = iter(_gradients(penalty, flat))
        finally:
            for latent in flat:
                latent.requires_grad_(False)
        for name, group in latents.items():
            steps[name].penalty_gradients = tuple(next(remaining) for _ in group)
        return penalty.detach()


def _gradients(penalty: Tensor, inputs: list[Tensor]) -> tuple[Tensor, ...]:
    """Zeros where the penalty does not depend on an input, and everywhere where it depends on none (no bit is left)."""
    if not inputs or not penalty.requires_grad:
        return tuple(torch.zeros_like(each) for each in inputs)
    return torch.autograd.grad(penalty, inputs, allow_unused=True, materialize_grads=True)
