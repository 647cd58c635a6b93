"""A method, or one for each layer, on a whole network."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from bsq_lightning.post_training.base import PostTrainingMethod
from bsq_lightning.quantized_tensor import QuantizedTensor


@torch.no_grad()
def quantize_(
    net: nn.Module, methods: Mapping[str, PostTrainingMethod], inputs: Mapping[str, Tensor] | None = None
) -> dict[str, QuantizedTensor]:
    """Quantizes layers of ``net`` in place: the weight of each becomes what its quantized tensor stands for.

    Args:
        net: the network.
        methods: by name of the layer, the method of its weight; layers without one stay float.
        inputs: by name, what ``layer_inputs`` found; layers without are judged by the error of their weights.

    Returns:
        The quantized tensors by name, in the order of ``methods``.

    Raises:
        ValueError: a method cannot take a weight; the message names the layer.
        AttributeError: no such layer.

    Example:
        >>> from bsq_lightning.post_training import Round
        >>> net = nn.Sequential(nn.Linear(4, 3))
        >>> tensors = quantize_(net, {"0": Round(2)})
        >>> torch.equal(net[0].weight, tensors["0"].dequantize())
        True
    """
    tensors = {}
    for name, method in methods.items():
        weight = net.get_parameter(f"{name}.weight")
        try:
            tensors[name] = method(weight.detach(), inputs=(inputs or {}).get(name))
        except ValueError as error:
            raise ValueError(f"layer {name}: {error}") from error
        weight.copy_(tensors[name].dequantize())
    return tensors
