"""The contract of quantization without training."""

import math
from typing import Protocol

import torch
from torch import Tensor

from bsq_lightning.quantized_tensor import QuantizedTensor


class PostTrainingMethod(Protocol):
    """Turns one float weight into a quantized one; its constructor says how.

    Laws (``tests/post_training/test_laws.py`` holds every method to them):
        ``method(W).dequantize()`` has the shape and dtype of W, and the result passes ``QuantizedTensor.check``;
        W is not changed, and the same W gives the same result;
        a W of zeros stays zero; ``-W`` gives the negative of what W gives;
        every figure of error is of the dequantized tensor.
    """

    def __call__(self, weight: Tensor, *, inputs: Tensor | None = None) -> QuantizedTensor:
        """Quantizes ``weight``.

        Args:
            weight: float ``[K, ...]``; a channel (filter) is what one output channel of a layer multiplies.
            inputs: what the channels multiply, ``[T, d]`` or ``[groups, T, d]`` (``layer_inputs``), for methods that
                look at the error of the output. None: the error of the weights, as if inputs were white.

        Raises:
            ValueError: a weight or inputs that this method cannot take.
        """
        ...


def as_rows(weight: Tensor, channels: bool = True) -> Tensor:
    """W as ``[K, d]``, one row for each output channel, or as one row ``[1, numel]``.

    Raises:
        ValueError: W is empty, no float tensor or not finite, or has no output channels where they are needed.

    Example:
        >>> as_rows(torch.zeros(8, 1, 3, 3)).shape, as_rows(torch.zeros(5), channels=False).shape
        (torch.Size([8, 9]), torch.Size([1, 5]))
    """
    if not weight.is_floating_point() or not weight.numel():
        raise ValueError(f"a weight is a float tensor that is not empty, not {weight.dtype} {list(weight.shape)}")
    if channels and weight.dim() < 2:
        raise ValueError(f"a tensor of shape {list(weight.shape)} has no output channels: use one step for all of it")
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("the weight has values that are not finite")
    return weight.detach().flatten(1) if channels else weight.detach().reshape(1, -1)


def step_like(steps: Tensor, weight: Tensor) -> Tensor:
    """Steps ``[K]`` as ``[K, 1, ...]`` in the dtype of ``weight``, or ``[1]`` of a whole tensor as 0-d."""
    steps = steps.to(weight.dtype)
    if weight.dim() < 2 or len(steps) != len(weight):
        return steps.reshape(())
    return steps.view(-1, *[1] * (weight.dim() - 1))


def output_errors(difference: Tensor, inputs: Tensor | None) -> Tensor:
    """``E_x (difference_k . x)^2`` of every channel k, float64 ``[K]``.

    Args:
        difference: ``[K, d]``; W itself gives the energy of the outputs.
        inputs: ``[T, d]``, or ``[groups, T, d]`` where each group of K / groups channels multiplies its own; None for
            white inputs.

    Raises:
        ValueError: no inputs, or of another shape than the channels.

    Example:
        >>> output_errors(torch.tensor([[1.0, -1.0]]), torch.tensor([[2.0, 1.0], [1.0, 1.0]]))
        tensor([0.5000], dtype=torch.float64)
    """
    channels, depth = difference.shape
    if inputs is None:
        return difference.double().square().sum(1)
    inputs = inputs if inputs.dim() == 3 else inputs.unsqueeze(0)
    groups, count, width = inputs.shape
    if not count or width != depth or channels % groups:
        raise ValueError(
            f"inputs of shape {list(inputs.shape)} do not belong to {channels} channels of {depth} weights: they are "
            "[groups, T, d] with at least one row, as layer_inputs gives them"
        )
    outputs = inputs.to(difference.dtype) @ difference.view(groups, -1, depth).mT  # [groups, T, K / groups]
    return outputs.double().square().mean(1).flatten()


def check_whole(name: str, value: int, lowest: int, highest: int) -> int:
    """Returns ``value`` if it is a whole number in ``lowest..highest``, else says what is allowed.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{name} is a whole number from {lowest} to {highest}, not {value!r}")
    return value


def check_positive(name: str, value: float, zero: bool = False) -> float:
    """Returns ``value`` if it is a finite number above 0 (or 0), else says what is allowed.

    Raises:
        ValueError: it is not.
    """
    if isinstance(value, bool) or not math.isfinite(value) or value < 0 or (value == 0 and not zero):
        raise ValueError(f"{name} is a finite number {'not below' if zero else 'above'} 0, not {value!r}")
    return float(value)
