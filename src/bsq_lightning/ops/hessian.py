"""How curved the loss is along each tensor, without ever holding a Hessian."""

from collections.abc import Sequence

import torch
from torch import Tensor


def hessian_traces(loss: Tensor, tensors: Sequence[Tensor], generator: torch.Generator, samples: int) -> Tensor:
    """Hutchinson's estimate of the trace of the Hessian H of ``loss`` over each tensor: the mean of ``v . H v`` over
    random signs v, ``[len(tensors)]``. Each tensor has signs of its own: with all tensors in one v, what they do to
    each other is noise that can exceed a small trace many times.

    Args:
        loss: 0-d, with its graph.
        tensors: what it is differentiated by.
        generator: draws the signs, on the CPU.
        samples: how many for each tensor; each costs two backward passes at most.

    Example:
        >>> x, y = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> hessian_traces((x**2).sum() + 3 * (y**2).sum(), [x, y], torch.Generator(), samples=1)
        tensor([ 6., 12.])
    """
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    total = loss.new_zeros(len(tensors))
    for i, (tensor, gradient) in enumerate(zip(tensors, gradients, strict=True)):
        for _ in range(samples if gradient.requires_grad else 0):
            signs = (torch.randint(0, 2, tensor.shape, generator=generator) * 2 - 1).to(tensor)
            product = torch.autograd.grad(gradient, tensor, signs, retain_graph=True, allow_unused=True)[0]
            total[i] += 0.0 if product is None else (signs * product).sum()
    return total / samples
