"""Trace of the Hessian of the loss by Hutchinson's estimator, times squared error (as HAWQ-V2, arXiv 1911.03852)."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsq_lightning.ops.evaluating import evaluating
from bsq_lightning.sensitivity.base import (
    Batch,
    CostTable,
    NamedWeights,
    check_bits,
    curvature_table,
    traces_of,
)


class Hutchinson:
    """``cost_l(n) = 1/2 (trace H_l / size_l) min_step ||W_l - W_l,n||^2`` with ``trace H = E v^T H v``, v of signs.

    H is the Hessian of the cross-entropy at the labels of ``batches``. It needs two backward passes where ``Fisher``
    needs one, and is noisier; a trace that comes out below zero counts as zero.

    Args:
        bits: numbers of bits of magnitude to look at.
        draws: vectors v for each group of images.
        group: images of one estimate.
        seed: of the vectors.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, bits: Sequence[int] = range(1, 9), draws: int = 4, group: int = 128, seed: int = 1) -> None:
        if draws < 1 or group < 1:
            raise ValueError(f"draws and group are at least 1, not {draws} and {group}")
        self.bits, self.draws, self.group, self.seed = check_bits(bits), draws, group, seed

    def __call__(self, net: nn.Module, weights: NamedWeights, batches: Iterable[Batch]) -> CostTable:
        """The table; ``batches`` hold images and labels."""
        traces = [max(0.0, trace) for trace in self.traces(net, weights, batches)]
        return curvature_table(weights, self.bits, traces)

    def traces(self, net: nn.Module, weights: NamedWeights, batches: Iterable[Batch]) -> list[float]:
        """Trace of H over each tensor; may be negative."""
        generator = torch.Generator().manual_seed(self.seed)
        parameters = [weight for _, weight in weights]

        def estimate(images: Tensor, labels: Tensor | None) -> list[Tensor]:
            if labels is None:
                raise ValueError(
                    "the Hessian of the loss needs labels: give batches of (images, labels), or use Fisher"
                )
            grads = torch.autograd.grad(F.cross_entropy(net(images), labels), parameters, create_graph=True)
            total = [torch.zeros((), dtype=torch.float64, device=images.device) for _ in parameters]
            for i in range(self.draws):
                signs = [(torch.rand(p.shape, generator=generator) < 0.5).to(p) * 2 - 1 for p in parameters]
                # One product for all tensors: v^T H v of a tensor then has cross terms too, which are zero on average.
                products = torch.autograd.grad(
                    grads, parameters, signs, retain_graph=i + 1 < self.draws, materialize_grads=True
                )
                for j, (product, sign) in enumerate(zip(products, signs, strict=True)):
                    total[j] += (product * sign).double().sum() / self.draws
            return total

        with evaluating(net), torch.enable_grad():
            return traces_of(batches, self.group, net, estimate)
