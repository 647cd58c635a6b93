"""Batch norm into the convolution before it, so that the vector that is quantized is the one that is computed with."""

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norm_(net: nn.Module) -> list[str]:
    """Multiplies every batch norm that follows a convolution into it, in place; the batch norm becomes an identity.

    ``W <- W gamma / sqrt(var + eps)`` per output channel, and a bias appears. The network is one for evaluation then:
    outputs in evaluation mode stay the same but for rounding, and training would have no batch norm.

    Args:
        net: a network that ``torch.fx`` can trace; only plain ``nn.Conv2d`` and ``nn.BatchNorm2d`` are looked at.

    Returns:
        Names of the convolutions that took one, in the order of the network.

    Raises:
        ValueError: the network cannot be traced, because its forward pass depends on its input.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        >>> fold_batch_norm_(net), net[1]
        (['0'], Identity())
    """
    try:
        graph = _Leaves().trace(net)
    except Exception as error:  # tracing fails in as many ways as there are forward passes
        raise ValueError(
            f"batch norm of {type(net).__name__} cannot be folded: torch.fx cannot trace it ({error}). Quantize it "
            "without folding, or fold it yourself"
        ) from error
    folded = []
    for node in graph.nodes:
        norm, source = _module(net, node), node.args[0] if node.args else None
        if type(norm) is not nn.BatchNorm2d or not isinstance(source, fx.Node):
            continue
        conv = _module(net, source)
        uses = [other for other in graph.nodes if other.op == "call_module" and other.target == source.target]
        again = [other for other in graph.nodes if other.op == "call_module" and other.target == node.target]
        if type(conv) is not nn.Conv2d or len(source.users) > 1 or len(uses) > 1 or len(again) > 1:
            continue  # what else reads the convolution would see the folded one
        if norm.running_mean is None or norm.running_var is None:
            continue  # it norms by the batch, in evaluation too
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        parent, _, name = str(node.target).rpartition(".")
        setattr(net.get_submodule(parent), name, nn.Identity())
        folded.append(str(source.target))
    return folded


class _Leaves(fx.Tracer):
    """Every module without children is a leaf, ours and other people's too."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _module(net: nn.Module, node: fx.Node) -> nn.Module | None:
    return net.get_submodule(str(node.target)) if node.op == "call_module" else None
