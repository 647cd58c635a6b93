"""Batch norm folded into the layer before it, in a network and in its quantized tensors: a step for each channel."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from bsq_lightning.exporters.forms import plain_form
from bsq_lightning.exporters.pair import plain_copy
from bsq_lightning.ops.batch_norm import fold_, foldable
from bsq_lightning.quantized_tensor import QuantizedState, QuantizedTensor


def fold_batch_norm(net: nn.Module, state: QuantizedState) -> tuple[nn.Module, QuantizedState]:
    """The pair of network and state in which every batch norm that directly follows a layer is in that layer.

    ``g = gamma / sqrt(var + eps)`` multiplies the steps; codes of a channel with a negative ``g`` change their sign.
    Batch norms that ``ops/batch_norm.py`` cannot fold stay, and those behind weights or biases that serve elsewhere, or
    have no step that could be multiplied. In floats the results differ by rounding.

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
    tensors, before = dict(state.tensors), _count(plain)
    shared = {*state.owners, *state.owners.values()}
    for name, norm in foldable(plain):
        form = plain_form(name, tensors[name])[0] if name in tensors else None
        if name in shared or f"{name}.bias" in tensors or (name in tensors and form is None):
            continue
        factor = fold_(plain, name, norm)
        if form is not None:
            tensors[name] = _scaled(form, factor)
            plain.get_submodule(name).weight = nn.Parameter(tensors[name].dequantize())
    return plain, replace(state, tensors=tensors, float_parameters=state.float_parameters + _count(plain) - before)


def _count(net: nn.Module) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _scaled(tensor: QuantizedTensor, factor: Tensor) -> QuantizedTensor:
    """Steps stay positive: the sign goes into the codes; where that leaves the range, into one bit more."""
    factor = factor.view(-1, *[1] * (tensor.codes.dim() - 1))
    codes = tensor.codes * torch.where(factor < 0, -1, 1).to(torch.int32)
    step = (tensor.step * factor.abs()).expand(len(codes), *[1] * (codes.dim() - 1)).contiguous()
    lowest = -(2 ** (int(tensor.precision) - 1)) if tensor.precision else 0
    wider = tensor.sign == "inside" and bool((codes == -lowest).any())
    return replace(tensor, codes=codes, step=step, precision=int(tensor.precision) + wider)
