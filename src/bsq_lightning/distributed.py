"""What the processes that train one network together agree on; in a process of its own these change nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

_CHUNK = 2**20
_ODD = -7046029254386353131  # 2^64 / golden ratio, as a signed number: neighbouring positions get unrelated factors


_alone = False


def world_size() -> int:
    """Number of processes in the group; 1 without one, and inside ``alone``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() and not _alone else 1


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process asks no other one: for a trial that the ranks need not make in step."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def barrier() -> None:
    """Waits until all ranks are here."""
    if world_size() > 1:
        dist.barrier()


@contextmanager
def going_first(first: bool) -> Iterator[None]:
    """The processes with ``first`` do what is inside, then the others do."""
    if not first:
        barrier()
    yield
    if first:
        barrier()


def largest_over_ranks_(tensor: Tensor) -> Tensor:
    """Replaces every element by its largest value over all ranks; returns the tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    return tensor


def sum_over_ranks_(tensor: Tensor) -> Tensor:
    """Replaces every element by its sum over all ranks; returns the tensor."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_rank_zero_(tensor: Tensor) -> Tensor:
    """Replaces the tensor by that of rank 0; returns it."""
    if world_size() > 1:
        dist.broadcast(tensor, 0)
    return tensor


def of_all_ranks(tensor: Tensor) -> Tensor:
    """The tensors of all ranks, stacked: ``[world_size, *tensor.shape]``."""
    if world_size() == 1:
        return tensor[None]
    gathered = [torch.empty_like(tensor) for _ in range(world_size())]
    dist.all_gather(gathered, tensor.contiguous())
    return torch.stack(gathered)


def checksum(tensor: Tensor) -> Tensor:
    """An int64 number that changes, for all one will ever see, with any bit of the tensor and with its order.

    Computed where the tensor is, 4 MB at a time.

    Example:
        >>> a = torch.tensor([0.0, 1.0, 2.0])
        >>> bool(checksum(a) == checksum(a.clone())), bool(checksum(a) == checksum(a.flip(0)))
        (True, False)
    """
    flat = tensor.detach().contiguous().flatten()
    whole = {1: torch.uint8, 2: torch.int16}.get(flat.element_size(), torch.int32)
    words = flat.to(torch.uint8) if flat.dtype == torch.bool else flat.view(whole)
    total = torch.full((), tensor.numel(), dtype=torch.int64, device=tensor.device)
    for start in range(0, len(words), _CHUNK):
        chunk = words[start : start + _CHUNK].long()
        place = torch.arange(start + 1, start + 1 + len(chunk), device=tensor.device) * _ODD
        total += ((chunk + 1) * (place | 1)).sum()
    return total
