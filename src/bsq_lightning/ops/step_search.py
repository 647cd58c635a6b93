"""The step of least squared error, for rows of weights: among candidates, or the exact optimum over all steps.

Both rest on one observation: for a step a, the code of ``|w_j|`` is the number of k in ``0..top-1`` with
``|w_j| >= a (k + 1/2)``. With sorted rows and running sums that is a search in an ordered list, not a pass over W.
"""

import numpy as np
import torch
from torch import Tensor

EVENTS = 2**24  # of one chunk of rows: 128 MiB of float64


def codes_of(rows: Tensor, step: Tensor, top: int) -> Tensor:
    """Nearest codes in ``-top..top``, half to even, of the shape and dtype of ``rows``; zero where a step is zero.

    Args:
        rows: ``[K, d]``.
        step: ``[K]``.
        top: largest code.
    """
    step = step.unsqueeze(1)
    return torch.where(step > 0, rows / torch.where(step > 0, step, 1), 0.0).round_().clamp_(-top, top)


def step_errors(rows: Tensor, steps: Tensor, top: int) -> Tensor:
    """``||w - a codes||^2`` for each row w and each of its steps a, float64 ``[K, candidates]``.

    ``||w||^2 - 2 a X + a^2 S`` with ``X = <|w|, codes>`` and ``S = <codes, codes>``, both from running sums.

    Args:
        rows: ``[K, d]``.
        steps: ``[K, candidates]``.
        top: largest code.

    Example:
        >>> step_errors(torch.tensor([[1.0, -0.25]]), torch.tensor([[1.0, 0.5]]), top=1)
        tensor([[0.0625, 0.3125]], dtype=torch.float64)
    """
    count, depth = rows.shape
    ordered = _sorted(rows.abs()).double()
    below = torch.nn.functional.pad(ordered.cumsum(1), (1, 0))  # [K, d + 1]: sum of the smallest i
    middles = torch.arange(top, device=rows.device, dtype=torch.float64) + 0.5
    steps = steps.double()
    bounds = (steps.unsqueeze(2) * middles).view(count, -1)  # [K, candidates * top]
    place = torch.searchsorted(ordered, bounds)
    above = below[:, -1:] - below.gather(1, place)
    products = above.view(count, -1, top).sum(2)
    squares = ((depth - place).view(count, -1, top) * (2 * middles)).sum(2)
    return ordered.square().sum(1, keepdim=True) - 2 * steps * products + steps.square() * squares


def best_candidate(rows: Tensor, top: int, candidates: int = 80) -> tuple[Tensor, Tensor]:
    """The best of ``candidates`` fractions of ``max|w| / top`` for each row: steps and squared errors, float64 ``[K]``.

    The steps that ``ops.uniform.mse_step`` tries, found without a pass over the weights for each of them.

    Example:
        >>> from bsq_lightning.ops.uniform import mse_step
        >>> weight = torch.tensor([[0.1, -0.1, 0.1, 1.0]])
        >>> torch.allclose(best_candidate(weight, top=3)[0].float(), mse_step(weight, 2))
        True
    """
    steps, errors = [], []
    fractions = torch.arange(1, candidates + 1, device=rows.device, dtype=torch.float64) / candidates
    for some in _chunks(rows, candidates * top + rows.shape[1]):
        tried = some.abs().amax(1, keepdim=True).double() / top * fractions
        error, place = step_errors(some, tried, top).min(1)
        steps.append(tried.gather(1, place.unsqueeze(1)).squeeze(1))
        errors.append(error.clamp_min(0))
    return torch.cat(steps), torch.cat(errors)


def exact_step(rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    """The global minimum of ``||w - a c||^2`` over all ``a > 0`` and codes ``|c_j| <= top``, for each row.

    As a falls from infinity, the code of w_j grows from k to k+1 at ``a = |w_j| / (k + 1/2)``. Between two such events
    the codes stay, and the best a for them is X / S with the error ``||w||^2 - X^2 / S``: so the optimum is the
    largest X^2 / S over the ``d top`` events in falling order. O(d top log(d top)) a row; many ``top`` are dear.

    Args:
        rows: ``[K, d]``.
        top: largest code, at least 1.

    Returns:
        Steps, float64 ``[K]``, and codes with the signs of ``rows``, int32 ``[K, d]``. A row of zeros has step 0.

    Example:
        >>> exact_step(torch.tensor([[3.0, -1.0, 0.2]]), top=3)
        (tensor([1.], dtype=torch.float64), tensor([[ 3, -1,  0]], dtype=torch.int32))
    """
    found = [_exact(some, top) for some in _chunks(rows, rows.shape[1] * top)]
    return torch.cat([steps for steps, _ in found]), torch.cat([codes for _, codes in found])


def grid_step(rows: Tensor, top: int, eta: float, most: int = 1024) -> tuple[Tensor, Tensor]:
    """The best a of the multipoint paper's grid, for each row: steps float64 ``[K]`` and codes int32 ``[K, d]``.

    In the paper's units (a times ``top``) the candidates are ``g, 2g, ...`` up to ``2 top max|w|``, where everything
    rounds to zero, and ``g = min(D / top, eta)`` with D the smallest gap of distinct magnitudes (recalled from a
    reimplementation, unverified). D of a long row is next to nothing, so that the rule asks for millions of
    candidates: ours are ``most`` at most, evenly spread. Codes are judged at the candidate itself.

    Args:
        rows: ``[K, d]``.
        top: largest code, at least 1.
        eta: largest gap of the grid.
        most: candidates of a row at most.
    """
    steps = []
    count = torch.arange(1, most + 1, device=rows.device, dtype=torch.float64)
    for some in _chunks(rows, most * top + rows.shape[1]):
        gaps = _sorted(some.abs()).double().diff(dim=1)
        smallest = torch.where(gaps > 0, gaps, torch.inf).amin(1) if gaps.shape[1] else some.new_full((len(some),), eta)
        last = 2 * top * some.abs().amax(1).double()
        gap = (smallest / top).clamp_max(eta).maximum(last / most).unsqueeze(1)
        tried = gap * count / top
        place = step_errors(some, tried, top).argmin(1, keepdim=True)
        steps.append(tried.gather(1, place).squeeze(1))
    found = torch.cat(steps) * rows.any(1)
    return found, codes_of(rows, found, top).to(torch.int32)


def _exact(rows: Tensor, top: int) -> tuple[Tensor, Tensor]:
    sizes = rows.abs().double()
    middles = torch.arange(top, device=rows.device, dtype=torch.float64) + 0.5
    # Positive floats sort as their bits do, so k rides in the last bits of the event: one sort without an index,
    # which numpy does 10 times faster than torch sorts with one. It moves an event by 1e-16 * top relative.
    mask = 2 ** (top - 1).bit_length() - 1
    levels = torch.arange(top, device=rows.device)
    events = ((sizes.unsqueeze(2) / middles).view(torch.int64) & ~mask) | levels
    ordered = _sorted(events.flatten(1)).flip(1)
    half = (ordered & mask).double() + 0.5
    products = (ordered.view(torch.float64) * half).cumsum(1)
    best = (products.square_() / (2 * half).cumsum_(1)).argmax(1, keepdim=True)
    codes = (events >= ordered.gather(1, best).unsqueeze(2)).sum(2)
    squares = codes.square().sum(1).double().clamp_min(1)
    steps = (sizes * codes).sum(1) / squares
    return steps, (codes * rows.sign() * (steps > 0).unsqueeze(1)).to(torch.int32)


def _sorted(rows: Tensor) -> Tensor:
    """Rows in rising order."""
    if rows.device.type == "cpu":
        return torch.from_numpy(np.sort(rows.contiguous().numpy(), axis=1))
    return rows.sort(1).values


def _chunks(rows: Tensor, each: int) -> tuple[Tensor, ...]:
    return rows.split(max(1, EVENTS // max(1, each)))
