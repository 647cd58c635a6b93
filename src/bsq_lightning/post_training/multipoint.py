"""Multipoint quantization (Liu et al., arXiv 2002.09049): a channel is a sum of few low-bit vectors.

Where a detail of the paper could not be read it is derived, and marked so.
"""

import torch
from torch import Tensor

from bsq_lightning.ops.step_search import exact_step, grid_step
from bsq_lightning.post_training.base import as_rows, check_positive, check_whole, output_errors, step_like
from bsq_lightning.quantized_tensor import Points, QuantizedTensor
from bsq_lightning.scheme import FLOAT_BITS

SEARCHES = ("exact", "grid")
SELECTIONS = ("output_error", "random", "all")


class Multipoint:
    """``w ~ sum_i a_i c_i`` for every output channel w, with codes ``|c_i| <= m = 2^(b-1) - 1``, found greedily.

    Each point is the best single one for what the points before it left. A channel starts with one point and gets
    more while ``E_x (w.x - w_hat.x)^2`` is above ``threshold`` times the layer's mean ``E_x (w.x)^2``. The threshold
    is relative, unlike the paper's, because one absolute number means nothing for layers of different scale (derived).

    A step a_i here is the value of one code, the paper's a_i over m. The sign is inside the b bits.

    Args:
        precision: bits b of a point, sign inside, 2 to 8.
        threshold: relative output error from which a channel gets a further point; see ``select``.
        max_points: points of a channel at most.
        max_size: points of the layer at most, as a mean over channels: caps memory and operations by what they cost,
            channels of large error first. None: no cap.
        search: ``exact`` over all a (derived; never worse than a grid), or ``grid``, the paper's candidates
            ``g, 2g, ...`` with ``g = min(smallest gap / m, eta)`` (recalled from a reimplementation, unverified).
        refit: after each point solve least squares for all a_1..a_n jointly (derived).
        select: ``output_error``; ``random``: as many points, on other channels, which shows what the choice is worth;
            or ``all``: every channel has ``max_points``.
        per_channel: the first point has a step for each channel, else one for the layer, as a plain quantizer has.
        eta: largest gap of the grid.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> tensor = Multipoint(3, threshold=0.01)(torch.tensor([[3.0, -1.0, 0.0], [3.0, 1.3, -0.4]]))
        >>> points_of(tensor)
        tensor([1, 2])
    """

    def __init__(
        self,
        precision: int,
        threshold: float = 0.03,
        max_points: int = 4,
        max_size: float | None = None,
        search: str = "exact",
        refit: bool = False,
        select: str = "output_error",
        per_channel: bool = True,
        eta: float = 2**-9,
    ) -> None:
        self.precision = check_whole("precision", precision, 2, 8)
        self.max_points = check_whole("max_points", max_points, 1, 64)
        self.threshold = check_positive("threshold", threshold, zero=True)
        self.eta = check_positive("eta", eta)
        if max_size is not None and not max_size >= 1:
            raise ValueError(f"max_size is a mean number of points of at least 1, or None, not {max_size!r}")
        if search not in SEARCHES or select not in SELECTIONS:
            raise ValueError(
                f"search is one of {', '.join(SEARCHES)} and select of {', '.join(SELECTIONS)}, "
                f"not {search!r} and {select!r}"
            )
        self.max_size, self.search, self.refit = max_size, search, refit
        self.select, self.per_channel = select, per_channel

    @torch.no_grad()
    def __call__(self, weight: Tensor, *, inputs: Tensor | None = None) -> QuantizedTensor:
        """Quantizes ``weight`` to as many points a channel as its output error asks for."""
        rows = as_rows(weight)
        steps, codes = self.points(rows)  # [n, n, K], [n, K, d]
        wanted = torch.full((len(rows),), self.max_points, device=rows.device)
        if self.select != "all" or self.max_size is not None:
            wanted = self._select(rows, steps, codes, inputs)
        if self.select == "random":
            wanted = wanted[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).to(rows.device)]
        wanted.clamp_(min=1)
        most = int(wanted.max())
        steps = steps[wanted - 1, :, torch.arange(len(rows), device=rows.device)].T[:most]  # [n, K]
        used = torch.arange(most, device=rows.device).unsqueeze(1) < wanted
        steps, codes = steps * used, codes[:most].to(torch.int32) * used.unsqueeze(2)
        first = steps[0] if self.per_channel or self.refit else steps[0, :1]
        points = None
        if most > 1:
            ones = [1] * (weight.dim() - 1)
            further = steps[1:].to(weight.dtype).view(most - 1, len(rows), *ones)
            points = Points(codes[1:].view(most - 1, *weight.shape), further)
        return QuantizedTensor(codes[0].view(weight.shape), step_like(first, weight), self.precision, "inside", points)

    def points(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All points of every channel.

        Args:
            rows: ``[K, d]``.

        Returns:
            Steps, float64 ``[n, n, K]``: ``[i - 1, j]`` is that of point j where a channel has i points; and codes,
            int8 ``[n, K, d]``.
        """
        rows, number, top = rows.double(), self.max_points, 2 ** (self.precision - 1) - 1
        steps = torch.zeros(number, number, len(rows), dtype=torch.float64, device=rows.device)
        codes = torch.zeros(number, *rows.shape, dtype=torch.int8, device=rows.device)
        rest = rows
        for i in range(number):
            whole = i == 0 and not self.per_channel
            step, code = self._point(rest.reshape(1, -1) if whole else rest, top)
            codes[i] = code.view(rows.shape).to(torch.int8)
            steps[i, :i] = steps[i - 1, :i]
            steps[i, i] = step
            if self.refit and i:
                steps[i, : i + 1] = _least_squares(rows, codes[: i + 1])
                rest = rows - _sum_of(steps[i, : i + 1], codes[: i + 1])
            else:
                rest = rest - steps[i, i].unsqueeze(1) * codes[i]
        return steps, codes

    def _point(self, rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
        return exact_step(rows, top) if self.search == "exact" else grid_step(rows, top, self.eta)

    def _select(self, rows: Tensor, steps: Tensor, codes: Tensor, inputs: Tensor | None) -> Tensor:
        """Points of each channel, ``[K]``."""
        energy = output_errors(rows, inputs).mean().clamp_min(torch.finfo(torch.float64).tiny)
        errors = torch.zeros(self.max_points - 1, len(rows), dtype=torch.float64, device=rows.device)
        for i in range(self.max_points - 1):
            approximation = _sum_of(steps[i, : i + 1], codes[: i + 1])
            errors[i] = output_errors((rows - approximation).to(rows.dtype), inputs) / energy
        # A further point is asked for only where all before it were.
        errors = errors.cummin(0).values if len(errors) else errors
        threshold = -1.0 if self.select == "all" else self.threshold
        asked = errors > threshold
        if self.max_size is not None:
            allowed = int((self.max_size - 1) * len(rows))
            order = torch.where(asked, errors, -1.0).flatten().argsort(descending=True, stable=True)
            granted = torch.zeros_like(asked).flatten()
            granted[order[:allowed]] = True
            asked = asked & granted.view_as(asked)
        return 1 + asked.sum(0)


def points_of(tensor: QuantizedTensor) -> Tensor:
    """Number of points of every output channel, int64 ``[K]``."""
    first = torch.ones(len(tensor.codes), dtype=torch.int64, device=tensor.codes.device)
    return first + (tensor.extra.step != 0).flatten(1).sum(0) if isinstance(tensor.extra, Points) else first


def factors(tensor: QuantizedTensor) -> tuple[float, float]:
    """How many times the memory and the operations of a plain quantizer with a step for each channel.

    Memory: bits of codes and steps. Operations: the layer runs as one with ``sum_k n_k`` channels of d
    multiply-accumulates, whose outputs are weighted and added; the first weighting is the plain quantizer's own, each
    further one costs an operation: ``sum_k (n_k (d + 1) - 1) / (K d)``.
    """
    points, depth = points_of(tensor).double(), tensor.codes[0].numel()
    plain = tensor.codes.numel() * tensor.precision + FLOAT_BITS * len(tensor.codes)
    size = (tensor.storage_bits() + FLOAT_BITS * float(points.sum())) / plain
    return size, float((points * (depth + 1) - 1).mean()) / depth


def _least_squares(rows: Tensor, codes: Tensor) -> Tensor:
    """``[n, K]`` that minimise ``||w_k - sum_i a_ik c_ik||`` for every row, least norm where codes repeat."""
    codes = codes.double()
    gram = torch.einsum("nkd,mkd->knm", codes, codes)
    right = torch.einsum("nkd,kd->kn", codes, rows)
    return (torch.linalg.pinv(gram, hermitian=True) @ right.unsqueeze(2)).squeeze(2).T


def _sum_of(steps: Tensor, codes: Tensor) -> Tensor:
    """``sum_i a_ik c_ik``, ``[K, d]``, one point after the other so that no temporary holds them all."""
    total = steps[0].unsqueeze(1) * codes[0]
    for step, code in zip(steps[1:], codes[1:], strict=True):
        total.add_(step.unsqueeze(1) * code)
    return total
