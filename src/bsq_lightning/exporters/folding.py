"""Batch norm folded into the layer before it: an equal network in evaluation, with a step for each channel."""

from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bsq_lightning.exporters.forms import plain_form
from bsq_lightning.exporters.pair import plain_copy
from bsq_lightning.quantized_tensor import QuantizedState, QuantizedTensor

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fold_batch_norm(net: nn.Module, state: QuantizedState) -> tuple[nn.Module, QuantizedState]:
    """The pair of network and state in which every batch norm that directly follows a layer is in that layer.

    ``g = gamma / sqrt(var + eps)`` multiplies the steps and ``beta - mean g`` joins the bias; codes of a channel with
    a negative ``g`` change their sign. A batch norm with an activation in it (timm's) leaves that activation. Other
    batch norms stay. In floats the results differ by rounding.

    Args:
        net: plain network.
        state: its quantized tensors.

    Returns:
        A copy of the network, and its state.

    Raises:
        ValueError: the network cannot be traced, so that nobody knows what follows what.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()).eval()
        >>> folded, _ = fold_batch_norm(net, QuantizedState({}))
        >>> x = torch.randn(2, 3, 8, 8)
        >>> type(folded[1]).__name__, torch.allclose(folded(x), net(x), atol=1e-5)
        ('Identity', True)
    """
    plain = plain_copy(net, state)
    tensors, free = dict(state.tensors), state.float_parameters
    shared = {*state.owners, *state.owners.values()}
    for name, norm_name in _pairs(plain):
        layer: Any = plain.get_submodule(name)
        norm: Any = plain.get_submodule(norm_name)
        if name in shared or f"{name}.bias" in tensors:
            continue  # the same weights serve elsewhere, or the bias is on a grid of its own
        factor, shift = _affine(norm)
        channels = factor.view(-1, *[1] * (layer.weight.dim() - 1))
        weight = layer.weight * channels
        if name in tensors:
            form, _ = plain_form(name, tensors[name])
            if form is None:
                continue  # no step that could be multiplied
            tensors[name] = _scaled(form, channels)
            weight = tensors[name].dequantize()
        bias = shift if layer.bias is None else layer.bias * factor + shift
        free += bias.numel() if layer.bias is None else 0
        free -= sum(parameter.numel() for parameter in norm.parameters())
        layer.weight, layer.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        plain.set_submodule(norm_name, _what_follows(norm))
    return plain, replace(state, tensors=tensors, float_parameters=free)


def traced(net: nn.Module) -> fx.GraphModule:
    """The graph of a network, its layers as they are.

    Raises:
        ValueError: its forward depends on values, or calls what cannot be traced.
    """
    tracer = _Leaves()
    try:
        return fx.GraphModule(net, tracer.trace(net))
    except Exception as error:  # whatever a forward may raise on a stand-in for a tensor
        raise ValueError(
            f"{type(net).__name__} cannot be traced ({type(error).__name__}: {error}), so its batch norms cannot be "
            "folded: export it without folding"
        ) from error


class _Leaves(fx.Tracer):
    """Layers and batch norms are seen as modules, those of other libraries too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (*LAYERS, *NORMS)) or super().is_leaf_module(m, module_qualified_name)


def computes_as(module: nn.Module, types: tuple[type, ...]) -> bool:
    """Whether a module is one of these and computes as they do: a subclass with a forward of its own may do more.

    Example:
        >>> computes_as(nn.Linear(1, 1), LAYERS), computes_as(nn.ReLU(), LAYERS)
        (True, False)
    """
    return any(isinstance(module, each) and type(module).forward is each.forward for each in types)


def _what_follows(norm: nn.Module) -> nn.Module:
    """What a batch norm computes after the norm; timm's apply ``drop`` and ``act``."""
    children = dict(norm.named_children())
    return nn.Sequential(OrderedDict(children)) if children else nn.Identity()


def _folds(norm: nn.Module) -> bool:
    """Whether all that a batch norm does is known."""
    known = computes_as(norm, NORMS) or (
        isinstance(norm, NORMS) and list(dict(norm.named_children())) == ["drop", "act"]
    )
    return known and norm.running_var is not None


def _pairs(net: nn.Module) -> list[tuple[str, str]]:
    """Layers whose result only a batch norm reads, each used once."""
    graph = traced(net).graph
    modules = dict(net.named_modules(remove_duplicate=False))
    calls: list[Any] = [node for node in graph.nodes if node.op == "call_module"]
    uses = [id(modules[node.target]) for node in calls]
    found: list[tuple[str, str]] = []
    for node in calls:
        norm = modules[node.target]
        source: Any = node.args[0] if node.args else None
        if not _folds(norm) or source not in calls:
            continue
        layer = modules[source.target]
        if isinstance(layer, LAYERS) and len(source.users) == 1 and uses.count(id(layer)) == uses.count(id(norm)) == 1:
            found.append((source.target, node.target))
    return found


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    factor = (norm.running_var + norm.eps).rsqrt()
    factor = factor if norm.weight is None else norm.weight.detach() * factor
    shift = -norm.running_mean * factor
    return factor, shift if norm.bias is None else shift + norm.bias.detach()


def _scaled(tensor: QuantizedTensor, factor: Tensor) -> QuantizedTensor:
    """Steps stay positive: the sign goes into the codes; where that leaves the range, into one bit more."""
    codes = tensor.codes * torch.where(factor < 0, -1, 1).to(torch.int32)
    step = (tensor.step * factor.abs()).expand(len(codes), *[1] * (codes.dim() - 1)).contiguous()
    lowest = -(2 ** (int(tensor.precision) - 1)) if tensor.precision else 0
    wider = tensor.sign == "inside" and bool((codes == -lowest).any())
    return replace(tensor, codes=codes, step=step, precision=int(tensor.precision) + wider)
