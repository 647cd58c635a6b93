"""Trace of the Hessian of the loss by Hutchinson's estimator, times squared error (as HAWQ-V2, arXiv 1911.03852)."""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bsq_lightning.ops.evaluating import evaluating
from bsq_lightning.ops.hessian import hessian_traces
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

    H is the Hessian of the cross-entropy at the labels of ``batches``. It needs a backward pass for every tensor and
    draw where ``Fisher`` needs one in all, and is noisier; a trace that comes out below zero counts as zero.

    Args:
        bits: numbers of bits of magnitude to look at.
        draws: vectors v for each tensor and group of images.
        group: images of one estimate.
        seed: of the vectors.

    Raises:
        ValueError: an argument out of range.
    """

    def __init__(self, bits: Sequence[int] = range(1, 9), draws: int = 1, group: int = 128, seed: int = 1) -> None:
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
            return list(hessian_traces(F.cross_entropy(net(images), labels), parameters, generator, self.draws))

        with evaluating(net), torch.enable_grad():
            return traces_of(batches, self.group, net, estimate)
