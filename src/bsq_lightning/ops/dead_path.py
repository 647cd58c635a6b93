"""Which empty layers cut a network in two: asked of its graph, which no module list tells."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def cutting_layers(net: nn.Module, empty: Sequence[str], image_size: int) -> list[str]:
    """Of layers whose weights are all zero, those that nothing bypasses: the output no longer depends on the image.

    Around them a gradient is exactly 0, while any path that is left carries some. A copy is asked whose weights are
    positive and biases zero, so that no ReLU is shut and no two paths cancel; what was trained does not matter. Layers
    that cut together and not alone (two branches of one sum) are all named.

    Args:
        net: the plain network; it stays as it is.
        empty: names of the layers at 0 bits, or of their biases, which cut nothing.
        image_size: side of an image ``[1, 3, image_size, image_size]``.

    Returns:
        Names out of ``empty``; none where a path is left, or where the copy has no gradient even when it is whole.

    Example:
        >>> class Block(nn.Module):
        ...     def __init__(self) -> None:
        ...         super().__init__()
        ...         self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))
        ...     def forward(self, x: Tensor) -> Tensor:
        ...         return self.c(x + self.b(self.a(x)))
        >>> cutting_layers(Block(), ["a", "b"], 4), cutting_layers(Block(), ["a", "c"], 4)
        ([], ['c'])
    """
    layers = [name for name in empty if not name.endswith(".bias")]
    if not layers:
        return []
    probe = copy.deepcopy(net).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in probe.named_parameters():
            parameter.copy_(_positive(name, parameter, generator))
    if not _reaches(probe, image_size) or _reaches(_emptied(probe, layers), image_size):
        return []
    return [name for name in layers if not _reaches(_emptied(probe, [name]), image_size)] or layers


def _positive(name: str, parameter: Tensor, generator: torch.Generator) -> Tensor:
    if parameter.ndim < 2:
        return torch.full_like(parameter, 0.0 if name.endswith("bias") else 1.0)
    # Means of what is read, so that values stay small enough for ReLU6 and its like.
    weights = torch.rand(parameter.shape, generator=generator) + 0.5
    return (weights / parameter[0].numel()).to(parameter)


def _emptied(net: nn.Module, layers: Sequence[str]) -> nn.Module:
    emptied = copy.deepcopy(net)
    for name in layers:
        emptied.get_parameter(f"{name}.weight").detach().zero_()
    return emptied


def _reaches(net: nn.Module, image_size: int) -> bool:
    parameter = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, image_size, image_size, generator=generator).to(parameter)
    with torch.enable_grad():
        output = net(image.requires_grad_())
        mixed = output @ torch.rand(output.shape[-1], generator=generator).to(output)
        (gradient,) = torch.autograd.grad(mixed.sum(), image, allow_unused=True)
    return gradient is not None and bool(gradient.ne(0).any())
