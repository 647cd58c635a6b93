"""A network as every exporter takes it: a plain float module, and as data what is quantized in it."""

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.files import write_whole
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState
from bsq_lightning.quantizers import ActivationQuantizer


@dataclass(frozen=True)
class Exported:
    """A file that was written.

    Args:
        path: of the file.
        size: bytes.
        notes: in words, what is stored otherwise than the method stores it.
        report: what the export checked and measured, plain numbers.
    """

    path: Path
    size: int
    notes: tuple[str, ...] = ()
    report: dict[str, Any] = field(default_factory=dict)


class Rounding:
    """One place where activations are rounded, in the arithmetic of ``ActivationQuantizer`` with its range fixed.

    Args:
        activation: clip, range and bits; a range of 0 takes each batch's own.

    Example:
        >>> Rounding(QuantizedActivation("relu", "output", 2, 6.0, 3.0))(torch.tensor([0.0, 0.4, 1.6, 9.0]))
        tensor([0., 0., 2., 3.])
    """

    def __init__(self, activation: QuantizedActivation) -> None:
        self.activation = activation
        self.levels = 2**activation.bits - 1

    def unrounded(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x`` in steps, clipped but not rounded, and the step, which is never 0."""
        clip, size = self.activation.clip, self.activation.range
        if clip is not None:
            x = x.clamp(-clip, clip)
        if size:
            step = torch.full((), size, dtype=torch.float32, device=x.device)
            x = x.clamp(-size, size)
        else:
            step = x.detach().abs().amax().float()
        # On the device of x: a division by a number of the host is a multiplication by its inverse on a GPU.
        step = step.div(self.levels).to(x.dtype).clamp_min(torch.finfo(x.dtype).tiny)
        return x / step, step

    def __call__(self, x: Tensor) -> Tensor:
        steps, step = self.unrounded(x)
        return steps.round() * step

    def after_layer(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """Forward hook."""
        return self(output)

    def before_layer(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook."""
        return self(args[0]), *args[1:]


def hook_activations_(
    net: nn.Module,
    activations: Iterable[QuantizedActivation],
    build: Callable[[QuantizedActivation], Rounding] = Rounding,
) -> nn.Module:
    """Puts a ``Rounding`` at every site of ``net``, in place of what was there, and returns ``net``.

    Raises:
        ValueError: a site that the network has not, or that is neither ``input`` nor ``output``.
    """
    modules = dict(unhook_activations_(net).named_modules())
    for activation in activations:
        if activation.site not in modules:
            raise ValueError(f"{type(net).__name__} has no module {activation.site!r}, whose activations are quantized")
        if activation.at not in ("input", "output"):
            raise ValueError(
                f"{activation.site}: quantized at its {activation.at!r}, which is neither input nor output"
            )
        module, rounding = modules[activation.site], build(activation)
        if activation.at == "input":
            module.register_forward_pre_hook(rounding.before_layer)
        else:
            module.register_forward_hook(rounding.after_layer)
    return net


def unhook_activations_(net: nn.Module) -> nn.Module:
    """Takes all activation quantizers out of ``net`` and returns it."""
    for module in net.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(hooks.items()):
                if isinstance(getattr(hook, "__self__", None), (ActivationQuantizer, Rounding)):
                    del hooks[key]
    return net


def plain_copy(net: nn.Module, state: QuantizedState) -> nn.Module:
    """A copy of ``net`` on the CPU, in evaluation, without activation quantizers; checked against ``state``.

    Raises:
        ValueError: a tensor that the network has not, or whose weights are not the codes times the step.
    """
    plain = unhook_activations_(copy.deepcopy(net).cpu().eval())
    parameters = dict(plain.named_parameters(remove_duplicate=False))
    for name, tensor in state.tensors.items():
        if (key := state_key(name)) not in parameters:
            raise ValueError(f"{type(net).__name__} has no parameter {key}, which the quantized state describes")
        weight, parameter = tensor.dequantize().cpu(), parameters[key].detach()
        if weight.shape != parameter.shape or not torch.equal(weight.to(parameter.dtype), parameter):
            raise ValueError(
                f"the weights of {name} are not what the quantized state says (codes times step): state and network "
                "are of different moments"
            )
    return plain


def simulated(net: nn.Module, state: QuantizedState) -> nn.Module:
    """A copy of ``net`` that computes as the quantized network does: the reference of every check."""
    return hook_activations_(plain_copy(net, state), state.activations)


def state_key(name: str) -> str:
    """Name in the state dict of the quantized tensor called ``name``: of a layer its weight, of a bias itself."""
    return name if name.endswith(".bias") else f"{name}.weight"


def float_rest(net: nn.Module, state: QuantizedState) -> dict[str, Tensor]:
    """Entries of the state dict that are not quantized."""
    quantized = {state_key(name) for name in (*state.tensors, *state.owners)}
    return {key: value.detach().cpu() for key, value in net.state_dict().items() if key not in quantized}


def check_ranges(state: QuantizedState, what: str) -> None:
    """Raises ValueError, naming the sites, where ``what`` needs fixed ranges and there are none."""
    if free := [activation.site for activation in state.activations if not activation.range]:
        raise ValueError(
            f"{what} needs a fixed range for every quantized activation, and {', '.join(free[:5])} take each batch's "
            "own: calibrate the ranges first"
        )


def write_export(path: str | Path, content: bytes, overwrite: bool) -> Path:
    """Writes the file whole, or leaves what is there.

    Raises:
        FileExistsError: there is one, and ``overwrite`` is False.
        OSError: it cannot be written.
    """
    check_target(path, overwrite)
    write_whole(path, content)
    return Path(path)


def check_target(path: str | Path, overwrite: bool) -> None:
    """Raises FileExistsError for a file that is not to be replaced; called before the work starts, too."""
    if Path(path).exists() and not overwrite:
        raise FileExistsError(f"{path} exists: give overwrite=True to replace it")
