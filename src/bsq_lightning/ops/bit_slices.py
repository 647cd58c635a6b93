"""Codes as slices of a few bits in crossbars of memory cells, read by analog-to-digital converters (ADCs).

A crossbar has 128 rows (inputs) and a column for each output; a cell holds one slice of a code, two bits, and positive
and negative weights have crossbars of their own. Inputs come bit by bit, so a column's current is the sum of the
cells whose input bit is 1, and an ADC of n bits reads sums up to 2^n - 1.

Slices are those of bit-slice L1 (arXiv 1909.08496). ADC bits, energy and speed are derived, not read there; the factors
28.4 and 14.2 (energy), 8 and 2.67 (speed) for 1 and 3 bits are those remembered of its table, unverified.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

ROWS, SLICE_BITS, BITS = 128, 2, 8
REFERENCE_ADC = 8
COVERAGE = 0.999


def slice_count(bits: int = BITS, slice_bits: int = SLICE_BITS) -> int:
    """Number of slices of a code."""
    return -(-bits // slice_bits)


def slices(codes: Tensor, bits: int = BITS, slice_bits: int = SLICE_BITS) -> Tensor:
    """Digits of ``|codes|`` to the base ``2^slice_bits``; codes of more than ``bits`` bits count as ``2^bits - 1``.

    Returns:
        int32 ``[slices, *codes.shape]``, least significant slice first.

    Example:
        >>> slices(torch.tensor([228, -5, 256])).tolist()  # 228 = 3*64 + 2*16 + 1*4 + 0
        [[0, 1, 3], [1, 1, 3], [2, 0, 3], [3, 0, 3]]
    """
    whole = codes.abs().to(torch.int32).clamp_(max=2**bits - 1)
    return torch.stack(
        [(whole >> (k * slice_bits)) & (2**slice_bits - 1) for k in range(slice_count(bits, slice_bits))]
    )


def nonzero_shares(codes: Tensor, bits: int = BITS, slice_bits: int = SLICE_BITS) -> Tensor:
    """Share of the weights, zero ones included, whose slice is not zero: ``[slices]``, least significant first."""
    return (slices(codes, bits, slice_bits) != 0).flatten(1).double().mean(1)


def column_sums(codes: Tensor, rows: int = ROWS, bits: int = BITS, slice_bits: int = SLICE_BITS) -> Tensor:
    """The largest sum that each column can give: that of its cells, with every input bit 1.

    Args:
        codes: ``[K, ...]``; an output's weights in the order of its filter, ``rows`` of them in one crossbar.

    Returns:
        int64 ``[slices, 2, crossbars, K]``, positive weights first.

    Example:
        >>> column_sums(torch.tensor([[3, 1, -2]]), rows=2).squeeze(-1)[0].tolist()
        [[4, 0], [0, 2]]
    """
    flat = codes.flatten(1)
    signs = torch.stack((flat.clamp(min=0), flat.clamp(max=0)))
    cells = F.pad(slices(signs, bits, slice_bits), (0, -flat.shape[1] % rows))
    return cells.unflatten(-1, (-1, rows)).sum(-1).transpose(-1, -2)


def adc_bits(largest: int) -> int:
    """Bits of an ADC that reads sums from 0 to ``largest``: ``ceil(log2(1 + largest))``.

    Example:
        >>> adc_bits(0), adc_bits(1), adc_bits(7), adc_bits(128 * 3)
        (0, 1, 3, 9)
    """
    return int(largest).bit_length()


def energy_factor(bits: int) -> float:
    """Energy of one conversion of 8 bits over that of ``bits``, with ``P(n) = 2^n / (n + 1)``; infinite at 0 bits.

    Example:
        >>> round(energy_factor(1), 2), round(energy_factor(3), 2)
        (28.44, 14.22)
    """
    return _power(REFERENCE_ADC) / _power(bits) if bits else math.inf


def speed_factor(bits: int) -> float:
    """Time of one conversion of 8 bits over that of ``bits``, in proportion to the bits; infinite at 0 bits."""
    return REFERENCE_ADC / bits if bits else math.inf


def _power(bits: int) -> float:
    return 2**bits / (bits + 1)


@dataclass(frozen=True)
class SliceUse:
    """What one slice of one layer asks of its crossbars.

    Args:
        slice: 0 for the least significant.
        nonzero: share of all weights whose slice is not zero.
        nonzero_of_unpruned: the same, of the weights that are not zero.
        largest: largest column sum, over crossbars, columns and signs.
        covering: sum that 99.9 % of the columns do not exceed.
    """

    slice: int
    nonzero: float
    nonzero_of_unpruned: float
    largest: int
    covering: int

    @property
    def adc_bits(self) -> int:
        """Bits with which no column ever saturates."""
        return adc_bits(self.largest)

    @property
    def covering_adc_bits(self) -> int:
        """Bits with which 99.9 % of the columns never do."""
        return adc_bits(self.covering)


def slice_uses(codes: Tensor, rows: int = ROWS, bits: int = BITS, slice_bits: int = SLICE_BITS) -> list[SliceUse]:
    """Every slice of a layer, least significant first.

    Example:
        >>> [(use.nonzero, use.adc_bits) for use in slice_uses(torch.tensor([[1, 0], [64, 1]]))]
        [(0.5, 1), (0.0, 0), (0.0, 0), (0.25, 1)]
    """
    shares = nonzero_shares(codes, bits, slice_bits).tolist()
    alive = float((codes != 0).double().mean())
    sums = column_sums(codes, rows, bits, slice_bits).flatten(1).sort(1).values
    covering = max(0, math.ceil(COVERAGE * sums.shape[1]) - 1)
    return [
        SliceUse(k, share, share / alive if alive else 0.0, int(each[-1]), int(each[covering]))
        for k, (share, each) in enumerate(zip(shares, sums, strict=True))
    ]


def saturating_matmul(
    inputs: Tensor,
    codes: Tensor,
    adc: Sequence[int],
    input_bits: int,
    rows: int = ROWS,
    bits: int = BITS,
    slice_bits: int = SLICE_BITS,
) -> Tensor:
    """``inputs @ codes.T`` as crossbars compute it, with every column sum of every input bit cut at ``2^n - 1``.

    Args:
        inputs: integer codes ``[B, D]``; negative ones are sent in a pass of their own.
        codes: integer codes ``[K, D]``.
        adc: bits n of the ADC of each slice, least significant slice first.
        input_bits: bits of the inputs' magnitude.

    Returns:
        ``[B, K]`` in float64, exact integers.

    Raises:
        ValueError: not one number of ADC bits for each slice.

    Example:
        >>> x, w = torch.tensor([[1, 1, 2]]), torch.tensor([[3, 2, 1]])
        >>> saturating_matmul(x, w, [3] * 4, 2), saturating_matmul(x, w, [2] * 4, 2)  # 3 + 2 is cut to 3
        (tensor([[7.]], dtype=torch.float64), tensor([[5.]], dtype=torch.float64))
    """
    if len(adc) != slice_count(bits, slice_bits):
        raise ValueError(f"{slice_count(bits, slice_bits)} slices need as many numbers of ADC bits, not {len(adc)}")
    pad = -codes.shape[1] % rows
    crossbar = [
        F.pad(slices(signed, bits, slice_bits), (0, pad)).unflatten(-1, (-1, rows)).float()
        for signed in (codes.clamp(min=0), codes.clamp(max=0))
    ]
    filled = [any(bool(cells[k].any()) for cells in crossbar) for k in range(len(adc))]
    result = torch.zeros(len(inputs), len(codes), dtype=torch.float64, device=inputs.device)
    for sign, sent in ((1, inputs.clamp(min=0)), (-1, inputs.clamp(max=0).neg())):
        if not bool(sent.any()):
            continue
        sent = F.pad(sent.to(torch.int32), (0, pad)).unflatten(-1, (-1, rows))
        for t in range(input_bits):
            line = ((sent >> t) & 1).float()
            for k, width in enumerate(adc):
                if not filled[k]:
                    continue
                positive, negative = (
                    torch.einsum("bgr,kgr->bgk", line, cells[k]).clamp_(max=2**width - 1).sum(1) for cells in crossbar
                )
                result += sign * 2 ** (t + k * slice_bits) * (positive - negative).double()
    return result


def saturating_conv2d(
    inputs: Tensor,
    codes: Tensor,
    adc: Sequence[int],
    input_bits: int,
    *,
    stride: int | tuple[int, int] = 1,
    padding: int | tuple[int, int] = 0,
    dilation: int | tuple[int, int] = 1,
    groups: int = 1,
    rows: int = ROWS,
    bits: int = BITS,
    slice_bits: int = SLICE_BITS,
    at_once: int = 2**14,
) -> Tensor:
    """The convolution of integer codes by ``saturating_matmul``, one crossbar row for each place of a filter.

    Args:
        inputs: integer codes ``[N, C, H, W]``.
        codes: integer codes ``[K, C / groups, kh, kw]``.
        at_once: output places computed at a time; what is held on the way grows with it.

    Returns:
        ``[N, K, H', W']`` in float64; times both steps, and with the bias, what the layer gives.
    """
    kernel = (codes.shape[2], codes.shape[3])
    outputs = []
    for image, filters in zip(inputs.chunk(groups, 1), codes.chunk(groups, 0), strict=True):
        patches = F.unfold(image.double(), kernel, dilation, padding, stride)  # [N, D, L]
        flat = patches.transpose(1, 2).flatten(0, 1).round().to(torch.int32)
        done = [
            saturating_matmul(part, filters.flatten(1), adc, input_bits, rows, bits, slice_bits)
            for part in flat.split(at_once)
        ]
        outputs.append(torch.cat(done).unflatten(0, (len(inputs), -1)).transpose(1, 2))
    sides = [
        (size + 2 * pad - dil * (side - 1) - 1) // step + 1
        for size, pad, dil, side, step in zip(
            inputs.shape[2:], _pair(padding), _pair(dilation), kernel, _pair(stride), strict=True
        )
    ]
    return torch.cat(outputs, 1).unflatten(2, sides)


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
