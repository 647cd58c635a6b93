"""The optimizer of a quantized network: an ordinary torch optimizer, with latents stepped in place of weights."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import LatentRate, LatentStep, WeightQuantizer
from bsq_lightning.quantizers.damage import RoundingDamage


class Penalty(Protocol):
    """What the optimizer knows of a regularizer (``regularizers/base.py`` has the abstract class)."""

    def add_gradient_(self, steps: Mapping[str, LatentStep]) -> Tensor:
        """Adds the penalty's gradient to each step, by name of its tensor; returns the penalty."""
        ...


class LatentOptimizer(Optimizer):
    """Steps latents from the gradients of the weights, then writes the weights back.

    Its parameter groups hold every trainable parameter of the network, quantized weights included, so clipping,
    accumulation, GradScaler and schedulers act as on a float network. The configured optimizer itself runs over the
    float parameters and the latents, in one group for each rate that quantizers declare; bit planes take their own
    exact SGD step, whose gradients are of rank one and are never stored. A quantized weight without a
    gradient counts as one of zero: decay and momentum of its latents go on.

    Args:
        network: the network; its quantized weights are rewritten at every step.
        optimizer: builds the torch optimizer from parameters (``functools.partial(torch.optim.SGD, lr=0.1)``).
        regularizer: adds its gradient to that of the latents or of the weights.
        after_step: called with the network after every step.

    Raises:
        ValueError: bit planes with anything but plain SGD, whose step is the only one that is exact for them.
    """

    def __init__(
        self,
        network: QuantizedNetwork,
        optimizer: Callable[[Iterable[Any]], Optimizer],
        regularizer: Penalty | None = None,
        after_step: Callable[[QuantizedNetwork], None] | None = None,
    ) -> None:
        self.network = network
        self.regularizer = regularizer
        self.after_step = after_step
        self.penalty: Tensor | None = None
        self.damage = RoundingDamage()
        self._tensors = list(network.quantizers())
        self.quantizers = {name: quantizer for name, _, quantizer in self._tensors}
        trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
        quantized = {id(parameter) for _, parameter, _ in self._tensors}
        usual = LatentRate()
        rates = {id(p): q.rate for q in network.activation_quantizers.values() for p in q.parameters()}
        groups: dict[LatentRate, list[nn.Parameter]] = {usual: []}
        for parameter in trainable:
            if id(parameter) not in quantized:
                groups.setdefault(rates.get(id(parameter), usual), []).append(parameter)  # type: ignore[arg-type]
        for quantizer in self.quantizers.values():
            if not quantizer.steps_itself:
                for latent, rate in zip(quantizer.latents(), quantizer.latent_rates(), strict=True):
                    groups.setdefault(rate, []).append(latent)
        # A network without biases and batch norm leaves nothing for the inner optimizer, which refuses an empty list.
        groups[usual] = groups[usual] or [nn.Parameter(torch.zeros(0))]
        self._rates = list(groups)
        self.inner = optimizer(groups[usual] if len(groups) == 1 else [{"params": group} for group in groups.values()])
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
        for group, rate in zip(self.inner.param_groups, self._rates, strict=True):
            group.update(hyper)
            if rate != LatentRate():
                group["lr"] = hyper["lr"] * rate.lr_factor
                if rate.weight_decay is not None:
                    group["weight_decay"] = rate.weight_decay
        steps = {name: self._begun(parameter, quantizer) for name, parameter, quantizer in self._tensors}
        self.damage.add_(steps)
        if self.regularizer is not None:
            self.penalty = self.regularizer.add_gradient_(steps)
        own: dict[type[WeightQuantizer], list[LatentStep]] = {}
        for step in steps.values():
            if step.quantizer.steps_itself:
                own.setdefault(type(step.quantizer), []).append(step)
                continue
            gradients = step.quantizer.latent_gradients(step.weight, step.grad)
            for i, (latent, gradient) in enumerate(zip(step.quantizer.latents(), gradients, strict=True)):
                latent.grad = gradient if step.penalty_gradients is None else gradient + step.penalty_gradients[i]
        for kind, kinds_steps in own.items():
            kind.sgd_steps_(kinds_steps, hyper)
        self.inner.step()
        for _, parameter, quantizer in self._tensors:
            if not quantizer.steps_itself:
                quantizer.project_()
                for latent in quantizer.latents():
                    latent.grad = None
                if quantizer.exact:
                    parameter.copy_(quantizer.weight())
        if self.after_step is not None:
            self.after_step(self.network)
        return loss

    def _begun(self, parameter: nn.Parameter, quantizer: WeightQuantizer) -> LatentStep:
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        return LatentStep(quantizer, parameter, grad, self.state[parameter] if quantizer.steps_itself else {})

    def forget_momentum_(self) -> None:
        """Drops all optimizer state, of float parameters too, as an adjustment does."""
        self.state.clear()
        self.inner.state.clear()

    def state_dict(self) -> dict[str, Any]:
        """The planes' momentum, the inner optimizer's state and what is measured."""
        return {**super().state_dict(), "inner": self.inner.state_dict(), "damage": self.damage.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores ``state_dict()``."""
        state_dict = dict(state_dict)
        self.inner.load_state_dict(state_dict.pop("inner"))
        if "damage" in state_dict:  # absent in checkpoints of version 0.1
            self.damage.load_state_dict(state_dict.pop("damage"))
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
