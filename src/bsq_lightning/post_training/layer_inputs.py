"""What the channels of a layer multiply, collected from a forward pass: the calibration data of methods."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bsq_lightning.ops.evaluating import evaluating


@torch.no_grad()
def layer_inputs(
    net: nn.Module, names: Sequence[str], batches: Iterable[Tensor], per_batch: int = 1024
) -> dict[str, Tensor]:
    """Inputs of layers as rows: patches of a convolution, features of a linear layer.

    Of each batch ``per_batch`` positions are kept, evenly spread over images and places. The network is in evaluation
    mode meanwhile; give it float weights or quantized ones, as the errors are to be seen.

    Args:
        net: the network.
        names: layers, ``nn.Linear`` or ``nn.Conv2d``.
        batches: images ``[B, 3, H, W]``, or whatever ``net`` takes.
        per_batch: rows of one batch and group at most.

    Returns:
        By name ``[groups, T, d]``, d being the weights of one output channel.

    Raises:
        ValueError: a layer of another kind, one whose weight no batch reached, or no batches.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=4))
        >>> layer_inputs(net, ["0"], [torch.zeros(2, 4, 5, 5)])["0"].shape
        torch.Size([4, 50, 9])
    """
    layers = {name: net.get_submodule(name) for name in names}
    for name, layer in layers.items():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise ValueError(f"layer {name} is a {type(layer).__name__}; inputs are taken of Linear and Conv2d")
    weights: dict[str, Any] = {name: layer.weight for name, layer in layers.items()}
    watch = _Watch(weights.values(), per_batch)
    with evaluating(net), watch:
        for images in batches:
            net(images)
    found = {name: watch.found[id(weight)] for name, weight in weights.items()}
    empty = [name for name, rows in found.items() if not rows]
    if empty:
        own = [f"{name} ({type(layers[name]).__name__})" for name in empty[:3]]
        raise ValueError(
            f"no calibration image reached the weight of {', '.join(own)}: give at least one batch of images; a layer "
            "whose own forward multiplies something else than its weight cannot be judged, quant.skip leaves it out"
        )
    return {name: torch.cat(rows, 1) for name, rows in found.items()}


class _Watch(TorchFunctionMode):
    """Keeps what known weights are given to multiply: what layers with a forward of their own have padded, too."""

    def __init__(self, weights: Iterable[Tensor], most: int) -> None:
        super().__init__()
        self.most = most
        self.found: dict[int, list[Tensor]] = {id(weight): [] for weight in weights}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _ROWS:
            rows = self.found.get(id(args[1] if len(args) > 1 else kwargs["weight"]))
            if rows is not None:
                rows.append(_ROWS[func](self.most, *args, **kwargs))
        return func(*args, **kwargs)


def _linear_rows(most: int, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    rows = input.reshape(1, -1, input.shape[-1])
    return rows[:, _spread(rows.shape[1], most, input.device)]


def _conv_rows(
    most: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    sizes, strides, dilations = weight.shape[2:], _pair(stride), _pair(dilation)
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, sizes, strict=True)]
    if padding == "same":
        pads = [((span - 1) // 2, span // 2) for span in spans]
    else:
        pads = [(p, p) for p in _pair(0 if padding == "valid" else padding)]
    x = F.pad(input, [*pads[1], *pads[0]])
    high, wide = ((n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, strides, strict=True))
    place = _spread(len(x) * high * wide, most, x.device)
    image, row, column = place // (high * wide), place // wide % high, place % wide
    # Only the patches that are kept are gathered: all of them would be kernel-size times the activations.
    offsets = [torch.arange(k, device=x.device) * d for k, d in zip(sizes, dilations, strict=True)]
    rows = (row * strides[0]).unsqueeze(1) + offsets[0]
    columns = (column * strides[1]).unsqueeze(1) + offsets[1]
    patches = x.permute(0, 2, 3, 1)[image.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]  # [T, R, S, C]
    return patches.permute(3, 0, 1, 2).reshape(groups, -1, len(place), *sizes).transpose(1, 2).flatten(2)


_ROWS: dict[Any, Callable[..., Tensor]] = {F.linear: _linear_rows, F.conv2d: _conv_rows}


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


def _spread(count: int, most: int, device: torch.device) -> Tensor:
    """``most`` of ``count`` places, evenly spread; all where there are fewer."""
    return torch.arange(min(count, most), device=device) * count // min(count, most)
