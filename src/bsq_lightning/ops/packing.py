"""Integers of any width next to each other in bytes, exactly, both ways.

A code of ``width`` bits, stored as ``code + 2^(width - 1)``, is cut into pieces of 8, 4, 2 and 1 bits. Pieces of one
size of all codes of a block lie together: ``m`` bytes hold ``8 m / size`` of them, the first ``m`` in their lowest
bits, the next ``m`` in the bits above. So packing and unpacking are a few operations over contiguous memory, whatever
the width, and a block is small enough that what lies between them stays in the cache.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

WIDEST = 17  # 16 bits of magnitude and the sign
BLOCK = 1 << 16
SIZES = (8, 8, 4, 2, 1)


def pack(codes: Tensor, width: int) -> Tensor:
    """Signed codes in ``width`` bits each.

    Args:
        codes: integers from ``-2^(width - 1)`` to ``2^(width - 1) - 1``, of any shape.
        width: 1 to 17.

    Returns:
        uint8, ``[packed_bytes(codes.numel(), width)]``, on the device of ``codes``.

    Raises:
        ValueError: another width, or a code that does not fit.

    Example:
        >>> pack(torch.tensor([-2, -1, 0, 1]), width=2)
        tensor([228], dtype=torch.uint8)
        >>> unpack(torch.tensor([228], dtype=torch.uint8), width=2, count=4)
        tensor([-2, -1,  0,  1], dtype=torch.int32)
    """
    half = 1 << (_checked(width) - 1)
    if codes.numel():
        low, high = (int(bound) for bound in torch.aminmax(codes))
        if low < -half or high >= half:
            raise ValueError(f"codes from {low} to {high} do not fit in {width} bits, which hold {-half} to {half - 1}")
    result = torch.empty(packed_bytes(codes.numel(), width), dtype=torch.uint8, device=codes.device)
    start = 0
    for block in codes.flatten().split(BLOCK):
        values = block.to(torch.int32) + half
        for size, below in _pieces(width):
            lanes, bytes_ = 8 // size, -(-len(block) * size // 8)
            piece = ((values >> below) & ((1 << size) - 1)).to(torch.uint8)
            piece = torch.nn.functional.pad(piece, (0, lanes * bytes_ - len(piece))).view(lanes, bytes_)
            packed = result[start : start + bytes_].copy_(piece[0])
            for lane in range(1, lanes):
                packed |= piece[lane] << (lane * size)
            start += bytes_
    return result


def unpack(packed: Tensor, width: int, count: int, dtype: torch.dtype = torch.int32) -> Tensor:
    """The ``count`` codes that ``pack`` packed.

    Args:
        packed: uint8, ``[packed_bytes(count, width)]``.
        width: bits of a code.
        count: number of codes.
        dtype: of the result, wide enough for the codes; a float type takes them as exactly.

    Returns:
        ``[count]``.

    Raises:
        ValueError: ``packed`` is not bytes, or not as many as the codes take.
    """
    if packed.dtype != torch.uint8 or packed.dim() != 1 or len(packed) != packed_bytes(count, width):
        raise ValueError(
            f"{count} codes of {width} bits take {packed_bytes(count, width)} bytes, "
            f"not {list(packed.shape)} of {packed.dtype}"
        )
    result, start = torch.empty(count, dtype=dtype, device=packed.device), 0
    for block in result.split(BLOCK):
        end = start + packed_bytes(len(block), width)
        block.copy_(_unpacked_block(packed[start:end], width, len(block)))
        start = end
    return result


def packed_bytes(count: int, width: int) -> int:
    """Bytes that ``count`` codes of ``width`` bits take: ``count width / 8``, rounded up for each piece.

    Example:
        >>> packed_bytes(1000, 3), packed_bytes(3, 5)
        (375, 3)
    """
    _checked(width)
    blocks, rest = divmod(count, BLOCK)
    return blocks * BLOCK * width // 8 + sum(-(-rest * size // 8) for size, _ in _pieces(width))


def _unpacked_block(packed: Tensor, width: int, count: int) -> Tensor:
    """Codes as int8 up to 8 bits, as int32 above."""
    codes, start = torch.empty(0), 0
    for size, below in _pieces(width):
        lanes, bytes_ = 8 // size, -(-count * size // 8)
        piece = packed[start : start + bytes_].expand(lanes, bytes_)
        start += bytes_
        if lanes > 1:
            shifts = torch.arange(0, 8, size, dtype=torch.uint8, device=packed.device)
            piece = (piece >> shifts.unsqueeze(1)).bitwise_and_((1 << size) - 1)
        piece = piece.reshape(-1)[:count]
        piece = piece if width <= 8 else piece.to(torch.int32)
        piece = piece << below if below else piece
        codes = piece if below + size == width else codes.bitwise_or_(piece)
    half = 1 << (width - 1)
    # A byte that passes below zero is the negative code in two's complement.
    return (codes - half).view(torch.int8) if width <= 8 else codes.sub_(half)


def _pieces(width: int) -> Iterator[tuple[int, int]]:
    """Sizes of the pieces, the uppermost first, and how many bits of the code lie below each."""
    for size in SIZES:
        if size <= width:
            width -= size
            yield size, width


def _checked(width: int) -> int:
    if not 1 <= width <= WIDEST:
        raise ValueError(f"codes are packed in 1 to {WIDEST} bits, not {width}")
    return width
