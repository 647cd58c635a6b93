"""How curved the loss is along each tensor, without ever holding a Hessian."""

from collections.abc import Sequence

import torch
from torch import Tensor


def hessian_traces(loss: Tensor, tensors: Sequence[Tensor], generator: torch.Generator, samples: int) -> Tensor:
    """Hutchinson's estimate of the trace of the Hessian of ``loss`` over each tensor: the mean of ``v . H v`` over
    random signs v, ``[len(tensors)]``. H is the whole Hessian, so each sample carries noise of the other tensors too.

    Args:
        loss: 0-d, with its graph.
        tensors: what it is differentiated by.
        generator: draws the signs, on the CPU.
        samples: how many; each costs about two backward passes.

    Example:
        >>> x, y = torch.ones(3, requires_grad=True), torch.ones(2, requires_grad=True)
        >>> hessian_traces((x**2).sum() + 3 * (y**2).sum(), [x, y], torch.Generator(), samples=1)
        tensor([ 6., 12.])
    """
    gradients = torch.autograd.grad(loss, tensors, create_graph=True)
    total = loss.new_zeros(len(tensors))
    for _ in range(samples):
        signs = [(torch.randint(0, 2, t.shape, generator=generator) * 2 - 1).to(t) for t in tensors]
        products = torch.autograd.grad(
            gradients, tensors, signs, retain_graph=True, allow_unused=True, materialize_grads=True
        )
        total += torch.stack([(v * p).sum() for v, p in zip(signs, products, strict=True)])
    return total / samples
