"""Bit positions that a group of codes shares: the nearest codes of which each group uses few positions."""

from functools import lru_cache
from itertools import combinations

import torch
from torch import Tensor

CHUNK = 2**24  # scores of one pass over groups and subsets: 64 MiB of float32


def share_in_filters(
    codes: Tensor, number: Tensor, group: int, bits: int, consecutive: bool = False, alpha: float = 0.0
) -> Tensor:
    """``share_shifts`` in groups along the channels of a filter at one place of its kernel, which do not cross filters.

    Args:
        codes: int32 ``[K, C, ...]``.
        number: positions of a group of each filter, ``[K]``.
        group: weights of a group; the last one of a filter is filled up with zeros.
        bits: positions there are.
        consecutive: see ``share_shifts``.
        alpha: see ``share_shifts``.
    """
    moved = codes.movedim(1, -1)  # [K, ..., C]: channels of one place of the kernel follow each other
    groups = to_groups(moved.flatten(1), group)
    shared = torch.empty_like(groups)
    for n in number.unique().tolist():
        filters = number == n
        shared[filters] = share_shifts(groups[filters], n, bits, consecutive, alpha)
    flat = shared.flatten(1)[:, : codes[0].numel()].reshape(moved.shape)
    return flat.movedim(-1, 1).contiguous()


def to_groups(codes: Tensor, group: int) -> Tensor:
    """``[K, d]`` as ``[K, ceil(d / group), group]``, filled up with zeros."""
    return torch.nn.functional.pad(codes, (0, -codes.shape[1] % group)).view(len(codes), -1, group)


def share_shifts(groups: Tensor, number: int, bits: int, consecutive: bool = False, alpha: float = 0.0) -> Tensor:
    """The nearest codes of which each group uses ``number`` bit positions; of equal choices the first.

    Args:
        groups: int32 ``[..., M]``, magnitudes below ``2^bits``.
        number: positions N of a group.
        bits: positions there are.
        consecutive: only positions that follow each other.
        alpha: 0 for the squared error; above, MSE++ with one pass over coordinates.

    Example:
        >>> share_shifts(torch.tensor([[10, -2, 8, 0]]), number=2, bits=4)
        tensor([[10, -2,  8,  0]])
    """
    flat = groups.reshape(-1, groups.shape[-1])
    nearest, second = (table.to(flat.device) for table in _tables(bits, number, consecutive))  # [2^bits, subsets]
    rise = torch.arange(len(nearest), device=flat.device).unsqueeze(1) - nearest
    errors = torch.cat([-rise[1:].flip(0), rise]).float()  # signed, by code + 2^bits - 1
    parts = []
    for some in flat.split(max(1, CHUNK // errors.shape[1])):
        # A bag is a group: its sum over the rows of a table, for all subsets at once, and exact in float32.
        rows = some.long() + (2**bits - 1)
        score = torch.nn.functional.embedding_bag(rows, errors.square(), mode="sum")
        if alpha:
            score += alpha * torch.nn.functional.embedding_bag(rows, errors, mode="sum").square()
        subset = score.argmin(1, keepdim=True)
        parts.append(_choose(some, nearest, second, subset, alpha))
    return torch.cat(parts).view_as(groups) if parts else groups.clone()


def _choose(groups: Tensor, nearest: Tensor, second: Tensor, subset: Tensor, alpha: float) -> Tensor:
    sizes, sign = groups.abs().long(), groups.sign()
    chosen = nearest[sizes, subset]
    if alpha:
        other = second[sizes, subset]
        error, changed = (sign * (sizes - chosen)).double(), (sign * (sizes - other)).double()
        total = error.sum(1)
        for i in range(groups.shape[1]):
            old, new = error[:, i].clone(), changed[:, i]
            rest = total - old
            lower = new.square() + alpha * (rest + new).square() < old.square() + alpha * (rest + old).square()
            error[:, i] = torch.where(lower, new, old)
            chosen[:, i] = torch.where(lower, other[:, i], chosen[:, i])
            total = rest + error[:, i]
    return (sign * chosen).to(groups.dtype)


@lru_cache(maxsize=64)
def _tables(bits: int, number: int, consecutive: bool) -> tuple[Tensor, Tensor]:
    """For every magnitude and subset of positions the nearest and second nearest value, int64 ``[2^bits, subsets]``."""
    subsets = (
        [range(o, o + number) for o in range(bits - number + 1)] if consecutive else combinations(range(bits), number)
    )
    values = torch.tensor(
        [
            sorted(sum(2**s for j, s in enumerate(subset) if mask >> j & 1) for mask in range(2**number))
            for subset in subsets
        ]
    )  # [subsets, 2^number]
    sizes = torch.arange(2**bits)
    distance = (sizes.view(-1, 1, 1) - values).abs()
    places = distance.argsort(dim=2, stable=True)[:, :, :2]  # stable: the smaller of two that are equally near
    found = values.expand(len(sizes), -1, -1).gather(2, places)
    return found[:, :, 0].contiguous(), found[:, :, 1].contiguous()
