"""What quantizing each layer to each number of bits would cost, and the contract of what finds out."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bsq_lightning.ops.step_search import best_candidate
from bsq_lightning.ops.uniform import levels

NamedWeights = Sequence[tuple[str, nn.Parameter]]
Batch = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class CostTable:
    """Predicted rise of the loss, for every tensor and number of bits.

    Args:
        names: of the tensors, in the order of the network.
        sizes: weights of each tensor.
        bits: the numbers of bits that were looked at, rising.
        costs: float64 ``[tensors, bits]``.
        steps: the step of least squared error, float64 ``[tensors, bits]``.
    """

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    bits: tuple[int, ...]
    costs: Tensor
    steps: Tensor


class Sensitivity(Protocol):
    """Fills the cost table of a network; its constructor says how.

    Laws (``tests/sensitivity/test_laws.py``): the network, its gradients and its mode are left as they were; the same
    seed gives the same table; costs are finite.
    """

    def __call__(self, net: nn.Module, weights: NamedWeights, batches: Iterable[Batch]) -> CostTable:
        """The table.

        Args:
            net: a float network.
            weights: the tensors to be quantized by name, each a parameter of ``net``.
            batches: images, or images and labels, read once.

        Raises:
            ValueError: no batches, or labels are needed and missing.
        """
        ...


@torch.no_grad()
def squared_errors(weights: Sequence[tuple[str, Tensor]], bits: Sequence[int]) -> tuple[Tensor, Tensor]:
    """``min_step ||W - W_n||^2`` at n bits of magnitude, and the step: both float64 ``[tensors, bits]``, on the CPU.

    The step is the one of ``ops.uniform.mse_step``. At 0 bits the error is ``||W||^2`` and the step 0.

    Example:
        >>> errors, steps = squared_errors([("w", nn.Parameter(torch.tensor([1.0, -1.0, 0.5])))], bits=[0, 1, 2])
        >>> errors[0, 0].item(), bool(errors[0, 1] > errors[0, 2])
        (2.25, True)
    """
    check_bits(bits)
    errors = torch.zeros(len(weights), len(bits), dtype=torch.float64)
    steps = torch.zeros_like(errors)
    for i, (_, weight) in enumerate(weights):
        row = weight.detach().reshape(1, -1)
        for j, n in enumerate(bits):
            error, step = row_errors(row, n)
            errors[i, j], steps[i, j] = error[0], step[0]
    return errors, steps


def row_errors(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``min_step |w - w_n|^2`` of each row of ``[R, d]`` at n bits, and its step: both float64 ``[R]``, on the CPU.

    Example:
        >>> row_errors(torch.tensor([[1.0, -1.0], [0.5, 0.0]]), bits=0)[0]
        tensor([2.0000, 0.2500], dtype=torch.float64)
    """
    if not bits:
        error = rows.double().square().sum(1).cpu()
        return error, torch.zeros_like(error)
    step, error = best_candidate(rows, levels(bits))
    return error.cpu(), step.cpu()


def curvature_table(weights: NamedWeights, bits: Sequence[int], traces: Sequence[float]) -> CostTable:
    """``1/2 (trace_l / size_l) ||W_l - W_l,n||^2``: the quadratic model with the mean curvature of each tensor.

    Args:
        weights: the tensors.
        bits: numbers of bits.
        traces: trace of the curvature over each tensor.
    """
    errors, steps = squared_errors(weights, bits)
    sizes = [weight.numel() for _, weight in weights]
    mean = torch.tensor(traces, dtype=torch.float64) / torch.tensor(sizes, dtype=torch.float64)
    return CostTable(
        tuple(name for name, _ in weights), tuple(sizes), tuple(bits), 0.5 * mean.unsqueeze(1) * errors, steps
    )


def check_bits(bits: Sequence[int]) -> tuple[int, ...]:
    """Returns ``bits`` if they are whole, rising and in 0..16.

    Raises:
        ValueError: they are not.
    """
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n <= 16 for n in bits)
    if not bits or not whole or list(bits) != sorted(set(bits)):
        raise ValueError(f"bits are whole numbers from 0 to 16, rising, not {list(bits)}")
    return tuple(bits)


def split_batch(batch: Batch, net: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Images, and labels if there are any, where ``net`` is."""
    device = next(net.parameters()).device
    if isinstance(batch, Tensor):
        return batch.to(device), None
    return batch[0].to(device), batch[1].to(device) if len(batch) > 1 else None


def traces_of(
    batches: Iterable[Batch], group: int, net: nn.Module, estimate: Callable[[Tensor, Tensor | None], list[Tensor]]
) -> list[float]:
    """Mean over groups of images of what ``estimate(images, labels)`` says of each tensor.

    Raises:
        ValueError: no batches.
    """
    total, count = torch.zeros(()), 0
    for batch in batches:
        images, labels = split_batch(batch, net)
        for i in range(0, len(images), group):
            some = images[i : i + group]
            values = estimate(some, None if labels is None else labels[i : i + group])
            total = total + torch.stack([value.double() for value in values]).cpu() * len(some)
            count += len(some)
    if not count:
        raise ValueError("sensitivity needs at least one batch of images")
    return (total / count).tolist()
