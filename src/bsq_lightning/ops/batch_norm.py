"""Batch norm into the layer before it: an equal network in evaluation, with the weights that are computed with."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fold_batch_norm_(net: nn.Module) -> list[str]:
    """Folds every batch norm that directly follows a layer into it, in place, as ``fold_`` does.

    The network is one for evaluation then: its outputs stay the same but for rounding, and training would have no batch
    norm.

    Returns:
        Names of the layers that took one, in the order of the network.

    Raises:
        ValueError: the network cannot be traced, so that nobody knows what follows what.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        >>> fold_batch_norm_(net), net[1]
        (['0'], Identity())
    """
    found = foldable(net)
    for layer, norm in found:
        fold_(net, layer, norm)
    return [layer for layer, _ in found]


def foldable(net: nn.Module) -> list[tuple[str, str]]:
    """Layers whose result only a batch norm reads, each used once, and their norms, by name.

    A layer with a forward of its own may pad; one that computes with something else than its weight is left alone.

    Raises:
        ValueError: the network cannot be traced.
    """
    graph = traced(net).graph
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: list[Any] = [node for node in graph.nodes if node.op == "call_module"]
    uses = [id(modules[node.target]) for node in calls]
    found: list[tuple[str, str]] = []
    for node in calls:
        norm = modules[node.target]
        source: Any = node.args[0] if node.args else None
        if not _is_known(norm) or source not in calls:
            continue
        layer = modules[source.target]
        once = len(source.users) == 1 and uses.count(id(layer)) == uses.count(id(norm)) == 1
        if once and isinstance(layer, LAYERS) and _computes_from(layer):
            found.append((source.target, node.target))
    return found


@torch.no_grad()
def fold_(net: nn.Module, name: str, norm_name: str) -> Tensor:
    """Folds one batch norm of ``foldable(net)`` and returns ``g``, ``[K]``, which multiplied the output channels.

    ``g = gamma / sqrt(var + eps)``, ``W <- g W``, ``b <- g b + beta - g mean``. A batch norm with an activation in it
    (timm's) leaves that activation in its place.
    """
    layer: Any = net.get_submodule(name)
    norm: Any = net.get_submodule(norm_name)
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else norm.weight * factor
    shift = -norm.running_mean * factor
    shift = shift if norm.bias is None else shift + norm.bias
    weight = layer.weight * factor.view(-1, *[1] * (layer.weight.dim() - 1))
    layer.bias = nn.Parameter(shift if layer.bias is None else layer.bias * factor + shift)
    layer.weight = nn.Parameter(weight)
    left = OrderedDict(norm.named_children())
    net.set_submodule(norm_name, nn.Sequential(left) if left else nn.Identity())
    return factor


def traced(net: nn.Module, inside: bool = False) -> fx.GraphModule:
    """The graph of a network, its layers and batch norms as they are, those of other libraries too.

    Args:
        net: the network.
        inside: whether other modules without children are looked into: what they compute with tensors is seen then,
            and what cannot be traced in them is in the way.

    Raises:
        ValueError: its forward depends on values, or calls what cannot be traced.
    """
    tracer = _Leaves()
    tracer.inside = inside
    try:
        return fx.GraphModule(net, tracer.trace(net))
    except Exception as error:  # whatever a forward may raise on a stand-in for a tensor
        raise ValueError(
            f"{type(net).__name__} cannot be traced ({type(error).__name__}: {error}), so its batch norms cannot be "
            "folded: quantize it or export it without folding"
        ) from error


class _Leaves(fx.Tracer):
    inside = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        whole = isinstance(m, (*LAYERS, *NORMS)) or not (self.inside or list(m.children()))
        return whole or super().is_leaf_module(m, module_qualified_name)


def computes_as(module: nn.Module, types: tuple[type, ...]) -> bool:
    """Whether a module is one of these and computes as they do: a subclass with a forward of its own may do more.

    Example:
        >>> computes_as(nn.Linear(1, 1), LAYERS), computes_as(nn.ReLU(), LAYERS)
        (True, False)
    """
    return any(isinstance(module, each) and type(module).forward is each.forward for each in types)


def _is_known(norm: nn.Module) -> bool:
    """Whether all that a batch norm does is known; timm's apply ``drop`` and ``act`` behind it."""
    known = computes_as(norm, NORMS) or (
        isinstance(norm, NORMS) and list(dict(norm.named_children())) == ["drop", "act"]
    )
    return known and norm.running_var is not None


@torch.no_grad()
def _computes_from(layer: Any) -> bool:
    """Whether ``2 W`` and ``2 b + 1`` give twice the result and 1: a forward may pad, but not norm its weights."""
    if computes_as(layer, LAYERS):
        return True
    generator = torch.Generator().manual_seed(0)
    outputs, inputs, *sizes = layer.weight.shape
    spans = [d * (k - 1) + 1 for d, k in zip(getattr(layer, "dilation", ()), sizes, strict=True)]
    x = torch.rand(1, inputs * getattr(layer, "groups", 1), *spans, generator=generator).to(layer.weight)
    bias = layer.weight.new_zeros(outputs) if layer.bias is None else layer.bias
    changed = {"weight": 2 * layer.weight, "bias": 2 * bias + 1}
    found, expected = functional_call(layer, changed, x), 2 * layer(x) + 1
    return bool((found - expected).abs().max() <= 1e-4 * expected.abs().max())
