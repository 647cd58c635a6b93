"""Multiply-accumulates of each layer, counted by torch's own counter."""

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from bsq_lightning.ops.one_image import blank_image, show_


def count_macs(net: nn.Module, image_size: int) -> dict[str, int]:
    """MACs of one image ``[1, 3, image_size, image_size]``, by name of the convolution or linear layer.

    Batch norm, activations and additions count nothing, as is usual.

    Example:
        >>> count_macs(nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Linear(64, 5)), image_size=4)
        {'0': 1728, '2': 320}
    """
    image = blank_image(net, image_size)
    with FlopCounterMode(display=False) as counter:
        show_(net, image)
    counts = {name: sum(flops.values()) // 2 for name, flops in counter.get_flop_counts().items()}
    root = type(net).__name__
    layers = [n for n, m in net.named_modules() if isinstance(m, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear))]
    return {name: counts.get(f"{root}.{name}" if name else root, 0) for name in layers}
