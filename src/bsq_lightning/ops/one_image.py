"""One image through a network, for whoever counts what its layers do."""

import torch
from torch import Tensor, nn

from bsq_lightning.ops.evaluating import evaluating


def blank_image(net: nn.Module, image_size: int) -> Tensor:
    """``[1, 3, image_size, image_size]`` of zeros, where the network is and of its type."""
    parameter = next(net.parameters())
    return torch.zeros(1, 3, image_size, image_size, device=parameter.device, dtype=parameter.dtype)


def show_(net: nn.Module, image: Tensor) -> None:
    """Runs the network on an image in evaluation mode and without gradients; each module's mode stays what it was.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout())
        >>> show_(net, blank_image(net, 8))
        >>> net.training
        True
    """
    with evaluating(net), torch.no_grad():
        net(image)
