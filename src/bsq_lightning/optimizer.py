"""The optimizer of a quantized network: an ordinary torch optimizer, with latents stepped in place of weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import LatentStep, WeightQuantizer


class Penalty(Protocol):
    """What the optimizer knows of a regularizer (``regularizers/base.py`` has the abstract class)."""

    def penalty(self, quantizers: dict[str, WeightQuantizer]) -> Tensor:
        """The penalty, differentiable in the latents."""
        ...

    def plane_decay(
        self, quantizers: dict[str, WeightQuantizer], squares: Mapping[str, Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]] | None:
        """The penalty and, by name, the factor ``[n]`` its gradient multiplies each plane with; None: use autograd.

        ``squares`` has the ``plane_squares`` of those tensors whose last step has computed them.
        """
        ...


class LatentOptimizer(Optimizer):
    """Steps latents from the gradients of the weights, then writes the weights back.

    Its parameter groups hold every trainable parameter of the network, quantized weights included, so clipping,
    accumulation, GradScaler and schedulers act as on a float network. The configured optimizer itself runs over the
    float parameters and the latents of fixed-precision quantizers; bit planes take their own exact SGD step, whose
    gradients are of rank one and are never stored. A quantized weight without a
    gradient counts as one of zero: decay and momentum of its latents go on.

    Args:
        network: the network; its quantized weights are rewritten at every step.
        optimizer: builds the torch optimizer from parameters (``functools.partial(torch.optim.SGD, lr=0.1)``).
        regularizer: adds its gradient to that of the latents.

    Raises:
        ValueError: bit planes with anything but plain SGD, whose step is the only one that is exact for them.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        regularizer: Penalty | None = None,
    ) -> None:
        self.network = network
        self.regularizer = regularizer
        self.penalty: Tensor | None = None
        self._tensors = list(network.quantizers())
        self.quantizers = {name: quantizer for name, _, quantizer in self._tensors}
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        quantized = {id(parameter) for _, parameter, _ in self._tensors}
        inner = [parameter for parameter in trainable if id(parameter) not in quantized]
        for quantizer in self.quantizers.values():
            if not quantizer.steps_itself:
                inner.extend(quantizer.latents())
        # A network without biases and batch norm leaves nothing for the inner optimizer, which refuses an empty list.
        self.inner = optimizer(inner or [nn.Parameter(torch.zeros(0))])
        if any(quantizer.steps_itself for quantizer in self.quantizers.values()):
            _require_plain_sgd(self.inner)
        defaults = {key: value for key, value in self.inner.param_groups[0].items() if key != "params"}
        super().__init__(trainable, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step. ``closure``, if given, computes loss and gradients first and its value is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        hyper = {key: value for key, value in self.param_groups[0].items() if key != "params"}
        self.inner.param_groups[0].update(hyper)
        decays, gradients = self._penalty_gradients()
        own: dict[type[WeightQuantizer], list[LatentStep]] = {}
        for name, parameter, quantizer in self._tensors:
            grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
            extra = gradients.get(name)
            if quantizer.steps_itself:
                step = LatentStep(quantizer, parameter, grad, self.state[parameter], decays.get(name), extra)
                own.setdefault(type(quantizer), []).append(step)
                continue
            latents = quantizer.latents()
            for i, (latent, latent_grad) in enumerate(
                zip(latents, quantizer.latent_gradients(parameter, grad), strict=True)
            ):
                latent.grad = latent_grad if extra is None else latent_grad + extra[i]
        for kind, steps in own.items():
            kind.sgd_steps_(steps, hyper)
        self.inner.step()
        for _, parameter, quantizer in self._tensors:
            if not quantizer.steps_itself:
                quantizer.project_()
                for latent in quantizer.latents():
                    latent.grad = None
                parameter.copy_(quantizer.weight())
        self.network.clamp_()
        return loss

    def _penalty_gradients(self) -> tuple[dict[str, Tensor], dict[str, tuple[Tensor, ...]]]:
        """Plane decays where the regularizer has a closed form, else gradients of all latents by autograd."""
        if self.regularizer is None:
            return {}, {}
        states = {name: self.state.get(parameter, {}) for name, parameter, _ in self._tensors}
        squares = {name: state["squares"] for name, state in states.items() if "squares" in state}
        closed = self.regularizer.plane_decay(self.quantizers, squares)
        if closed is not None:
            self.penalty, decays = closed
            return decays, {}
        latents = {name: list(quantizer.latents()) for name, quantizer in self.quantizers.items()}
        flat = [latent for group in latents.values() for latent in group]
        try:
            for latent in flat:
                latent.requires_grad_(True)
            with torch.enable_grad():
                penalty = self.regularizer.penalty(self.quantizers)
                grads = torch.autograd.grad(penalty, flat, allow_unused=True, materialize_grads=True)
        finally:
            for latent in flat:
                latent.requires_grad_(False)
        self.penalty = penalty.detach()
        remaining = iter(grads)
        return {}, {name: tuple(next(remaining) for _ in group) for name, group in latents.items()}

    def forget_momentum_(self) -> None:
        """Drops all optimizer state, of float parameters too, as an adjustment does."""
        self.state.clear()
        self.inner.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """Both the planes' momentum and the inner optimizer's state."""
        return {**super().state_dict(), "inner": self.inner.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``."""
        state_dict = dict(state_dict)
        self.inner.load_state_dict(state_dict.pop("inner"))
        super().load_state_dict(state_dict)


def _require_plain_sgd(optimizer: Optimizer) -> None:
    group = optimizer.param_groups[0]
    refused = [key for key in ("nesterov", "dampening", "maximize") if group.get(key)]
    if type(optimizer) is not SGD or refused:
        what = f"SGD with {', '.join(refused)}" if type(optimizer) is SGD else type(optimizer).__name__
        raise ValueError(
            f"bit planes are trained by plain SGD with momentum, not by {what}: alpha and the closed form of the "
            "update mean nothing under another rule. Use torch.optim.SGD for this stage, or another quantizer."
        )
