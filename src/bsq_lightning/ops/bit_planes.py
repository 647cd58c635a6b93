"""The arithmetic of bit planes (Yang et al., "BSQ", ICLR 2021, section 3; arXiv 2102.10462).

A weight tensor is ``codes * step`` with integer codes. ``planes[0, b]`` and ``planes[1, b]`` hold bit b of the
positive and of the negative codes, least significant bit first, relaxed to real numbers in [0, 2] while they train.
"""

import torch
from torch import Tensor

MAX_PRECISION = 16
"""Bits of magnitude that a tensor can have. Quantizers and checkpoints are held to it, and the compiled steps are
compiled with it: their sums have room for this many planes."""


def split_planes(codes: Tensor, precision: int) -> Tensor:
    """Binary expansion of integer codes.

    Args:
        codes: integers of any shape and dtype, ``|codes| < 2**precision``.
        precision: number of planes n.

    Returns:
        Float planes of zeros and ones, ``[2, n, *codes.shape]``, least significant bit first.

    Raises:
        ValueError: a code needs more bits.

    Example:
        >>> split_planes(torch.tensor([5.0, -2.0]), 3)[:, :, 0]
        tensor([[1., 0., 1.],
                [0., 0., 0.]])
    """
    dtype = codes.dtype if codes.is_floating_point() else torch.get_default_dtype()
    codes = codes.to(torch.int32)
    if codes.numel() and (largest := int(codes.abs().max())) >= 2**precision:
        raise ValueError(f"a code of magnitude {largest} does not fit in {precision} bits")
    planes = torch.empty(2, precision, *codes.shape, dtype=dtype, device=codes.device)
    for signed, sign in zip(planes, (codes.clamp(min=0), codes.neg().clamp_(min=0)), strict=True):
        # Plane by plane: what is computed on the way is as large as one plane.
        for bit, plane in enumerate(signed):
            plane.copy_((sign >> bit).bitwise_and_(1))
    return planes


def merge_planes(planes: Tensor) -> Tensor:
    """Real value of relaxed planes in units of one step: ``sum_b 2^b (p_b - q_b)``, shape ``planes.shape[2:]``.

    The sum runs plane by plane in a fixed order, so it is the same number on every machine and thread count.

    Example:
        >>> merge_planes(split_planes(torch.tensor([5.0, -2.0, 0.0]), 3))
        tensor([ 5., -2.,  0.])
    """
    value = torch.zeros(planes.shape[2:], dtype=_full(planes), device=planes.device)
    for bit in range(planes.shape[1]):
        value.add_(planes[0, bit], alpha=2**bit).sub_(planes[1, bit], alpha=2**bit)
    return value


def plane_squares(planes: Tensor) -> Tensor:
    """Sum of squares of each bit position over both signs, ``[n]``: the groups of the group lasso."""
    return planes.to(_full(planes)).square().sum(dim=(0, *range(2, planes.dim())))


def _full(planes: Tensor) -> torch.dtype:
    """Planes may be kept in 16 bits; what is computed from them has 32 at least."""
    return torch.promote_types(planes.dtype, torch.float32)


def trim_codes(codes: Tensor) -> tuple[Tensor, int, int]:
    """Drops the empty bit planes at both ends of integer codes.

    Returns:
        The codes with ``shift`` trailing zero bits removed, the bits they need (0 if all are zero), and ``shift``.
        ``new_codes * 2**shift == codes`` exactly.

    Example:
        >>> trim_codes(torch.tensor([4.0, -12.0]))
        (tensor([ 1., -3.]), 2, 2)
    """
    if not codes.numel():
        return codes, 0, 0
    magnitude = codes.abs().to(torch.int32)
    # The lowest bit that any code has: of m, m & -m keeps the lowest. The device is asked once.
    lowest = torch.where(magnitude > 0, magnitude & -magnitude, 2**30).min()
    top, low = torch.stack((magnitude.max(), lowest)).tolist()
    if not top:
        return codes, 0, 0
    shift = low.bit_length() - 1
    return codes / 2**shift, (top >> shift).bit_length(), shift
