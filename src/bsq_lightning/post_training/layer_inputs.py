"""What the channels of a layer multiply, collected from a forward pass: the calibration data of methods."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        ValueError: a layer of another kind, one that no batch reached, or no batches.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1, groups=4))
        >>> layer_inputs(net, ["0"], [torch.zeros(2, 4, 5, 5)])["0"].shape
        torch.Size([4, 50, 9])
    """
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    layers = {name: net.get_submodule(name) for name in names}
    modes = {module: module.training for module in net.modules()}
    handles = []
    for name, layer in layers.items():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)):
            raise ValueError(f"layer {name} is a {type(layer).__name__}; inputs are taken of Linear and Conv2d")

        def keep(module: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
            found[name].append(_rows(module, args[0], per_batch))

        handles.append(layer.register_forward_pre_hook(keep))
    try:
        net.eval()
        for images in batches:
            net(images)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes.items():
            module.training = training
    empty = [name for name, rows in found.items() if not rows]
    if empty:
        raise ValueError(f"no calibration image reached {', '.join(empty[:3])}: give at least one batch of images")
    return {name: torch.cat(rows, 1) for name, rows in found.items()}


def _rows(layer: nn.Module, x: Tensor, most: int) -> Tensor:
    if isinstance(layer, nn.Linear):
        rows = x.reshape(1, -1, x.shape[-1])
        return rows[:, _spread(rows.shape[1], most, x.device)]
    assert isinstance(layer, nn.Conv2d)
    if isinstance(layer.padding, str):
        left = [
            d * (k - 1) // 2 if layer.padding == "same" else 0
            for d, k in zip(layer.dilation, layer.kernel_size, strict=True)
        ]
        over = [
            d * (k - 1) - p if layer.padding == "same" else 0
            for d, k, p in zip(layer.dilation, layer.kernel_size, left, strict=True)
        ]
        pads = [left[1], over[1], left[0], over[0]]
    else:
        pads = [layer.padding[1]] * 2 + [layer.padding[0]] * 2
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    x = F.pad(x, pads, mode=mode)
    spans = [d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
    high, wide = ((n - span) // s + 1 for n, span, s in zip(x.shape[2:], spans, layer.stride, strict=True))
    place = _spread(len(x) * high * wide, most, x.device)
    image, row, column = place // (high * wide), place // wide % high, place % wide
    # Only the patches that are kept are gathered: all of them would be kernel-size times the activations.
    offsets = [torch.arange(k, device=x.device) * d for k, d in zip(layer.kernel_size, layer.dilation, strict=True)]
    rows = (row * layer.stride[0]).unsqueeze(1) + offsets[0]
    columns = (column * layer.stride[1]).unsqueeze(1) + offsets[1]
    patches = x.permute(0, 2, 3, 1)[image.view(-1, 1, 1), rows.unsqueeze(2), columns.unsqueeze(1)]  # [T, R, S, C]
    return (
        patches.permute(3, 0, 1, 2).reshape(layer.groups, -1, len(place), *layer.kernel_size).transpose(1, 2).flatten(2)
    )


def _spread(count: int, most: int, device: torch.device) -> Tensor:
    """``most`` of ``count`` places, evenly spread; all where there are fewer."""
    return torch.arange(min(count, most), device=device) * count // min(count, most)
