"""The step of ``plane_step.py`` on a GPU: four kernels for all tensors together, however many there are.

A table on the device holds the address of every tensor, and a list of pieces says which part of which tensor a program
of the kernel works on. Sums run in the order of the pieces, without atomics, so a step is the same at every run.
"""

# Triton compiles what is inside its kernels; to Python's type rules it is another language.
# pyright: basic, reportArgumentType=false, reportIndexIssue=false, reportAttributeAccessIssue=false
# pyright: reportOperatorIssue=false, reportCallIssue=false, reportGeneralTypeIssues=false
from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from functools import lru_cache
from itertools import accumulate, chain

import torch
import triton
import triton.language as tl
from torch import Tensor

from bsq_lightning.ops import bit_planes
from bsq_lightning.ops.plane_tensors import PlaneTensors, Rates, check_tensors

PIECE = 1024  # weights of one program
COLUMNS = tl.constexpr(13)  # of the table: eight addresses, size, precision, clip, first piece, number of pieces
MAX_PRECISION = tl.constexpr(bit_planes.MAX_PRECISION)
_DTYPES = {torch.float32: tl.float32, torch.float64: tl.float64, torch.bfloat16: tl.bfloat16}


@triton.jit
def _entry(table, layer, column: tl.constexpr):
    return tl.load(table + layer * COLUMNS + column)


@triton.jit
def _hash(x):
    x = (x ^ (x >> 16)) * 0x21F0AAAD
    x = (x ^ (x >> 15)) * 0xD35A2D97
    return x ^ (x >> 15)


@triton.jit
def _clamp(x, low, high):
    # By default the bound would take the place of a NaN, and a layer would die without a word.
    x = tl.maximum(x, low, propagate_nan=tl.PropagateNan.ALL)
    return tl.minimum(x, high, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _round_by_chance(x, random):
    """float32 whose lower half is zero, as bfloat16 keeps it, up or down by chance so that the mean is x."""
    bits = x.to(tl.uint32, bitcast=True) + (random & 0xFFFF)
    return tl.where(x == x, (bits & 0xFFFF0000).to(tl.float32, bitcast=True), x)


@triton.jit
def _divide(a, b, full: tl.constexpr):
    # float32's own operator is off by an ulp or two, and W must be what torch computes from codes and scale.
    if full == tl.float32:
        return tl.div_rn(a, b)
    else:
        return a / b


@triton.jit
def dot_kernel(table, pieces, dots, full: tl.constexpr, size: tl.constexpr):
    piece = tl.program_id(0)
    layer = tl.load(pieces + 2 * piece)
    i = tl.load(pieces + 2 * piece + 1) + tl.arange(0, size)
    inside = i < _entry(table, layer, 8)
    grad = tl.load(_entry(table, layer, 2).to(tl.pointer_type(full)) + i, mask=inside, other=0.0)
    weight = tl.load(_entry(table, layer, 3).to(tl.pointer_type(full)) + i, mask=inside, other=0.0)
    tl.store(dots + piece, tl.sum(grad * weight, 0))


@triton.jit
def scale_kernel(table, rates, dots, steps, full: tl.constexpr):
    layer = tl.program_id(0)
    lr, mu, weight_decay = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2)
    first = _entry(table, layer, 11)
    count = _entry(table, layer, 12)
    sums = tl.zeros([1024], full)
    for k in range(0, count, 1024):
        some = k + tl.arange(0, 1024)
        sums += tl.load(dots + first + some, mask=some < count, other=0.0)
    slope = tl.sum(sums, 0)
    levels = ((1 << _entry(table, layer, 9)) - 1).to(full)
    scale_at = _entry(table, layer, 4).to(tl.pointer_type(full))
    momentum_at = _entry(table, layer, 5).to(tl.pointer_type(full))
    scale = tl.load(scale_at)
    momentum = mu * tl.load(momentum_at) + slope / scale + weight_decay * scale
    tl.store(steps + 2 * layer, _divide(scale, levels, full))
    scale = _clamp(scale - lr * momentum, 1e-8, float("inf"))
    tl.store(steps + 2 * layer + 1, _divide(scale, levels, full))
    tl.store(momentum_at, momentum)
    tl.store(scale_at, scale)


@triton.jit(do_not_specialize=["seed"])
def step_kernel(
    table, rates, pieces, steps, squares, seed, full: tl.constexpr, stored: tl.constexpr, magic: tl.constexpr,
    size: tl.constexpr,
):  # fmt: skip
    piece = tl.program_id(0)
    lr, mu, weight_decay = tl.load(rates), tl.load(rates + 1), tl.load(rates + 2)
    layer = tl.load(pieces + 2 * piece)
    start = tl.load(pieces + 2 * piece + 1)
    i = start + tl.arange(0, size)
    total, precision = _entry(table, layer, 8), _entry(table, layer, 9)
    inside = i < total
    planes = _entry(table, layer, 0).to(tl.pointer_type(stored))
    momenta = _entry(table, layer, 1).to(tl.pointer_type(stored))
    decays = _entry(table, layer, 6).to(tl.pointer_type(full))
    grad = tl.load(_entry(table, layer, 2).to(tl.pointer_type(full)) + i, mask=inside, other=0.0)
    old_step, new_step = tl.load(steps + 2 * layer), tl.load(steps + 2 * layer + 1)
    value = tl.zeros([size], full)
    worth = tl.full([], 1.0, full)
    for bit in range(precision):
        sums = tl.zeros([size], full)
        decay = weight_decay + tl.load(decays + bit)
        for sign in tl.static_range(2):
            signed = worth * (1 - 2 * sign)
            at = (sign * precision + bit) * total + i
            p = tl.load(planes + at, mask=inside, other=0.0).to(full)
            v = tl.load(momenta + at, mask=inside, other=0.0).to(full)
            v = mu * v + decay * p + signed * old_step * grad
            if stored == tl.bfloat16:
                random = _hash(_hash((seed + layer).to(tl.uint32)) ^ at.to(tl.uint32))
                v = _round_by_chance(v, random)
                p = _clamp(p - lr * v, 0.0, 2.0)
                p = _round_by_chance(p, random >> 16)
            else:
                p = _clamp(p - lr * v, 0.0, 2.0)
            tl.store(momenta + at, v.to(stored), mask=inside)
            tl.store(planes + at, p.to(stored), mask=inside)
            value += signed * p
            sums += p * p
        worth *= 2
        tl.store(squares + piece * MAX_PRECISION + bit, tl.sum(tl.where(inside, sums, 0.0), 0))
    # Adding and taking away 1.5 * 2^(mantissa bits) rounds half to even, as torch.round does.
    codes = (value + magic) - magic
    top = tl.where(_entry(table, layer, 10) != 0, ((1 << precision) - 1).to(full), float("inf"))
    codes = _clamp(codes, -top, top)
    tl.store(_entry(table, layer, 3).to(tl.pointer_type(full)) + i, codes * new_step, mask=inside)


@triton.jit
def squares_kernel(table, squares, full: tl.constexpr):
    layer = tl.program_id(0)
    first = _entry(table, layer, 11)
    count = _entry(table, layer, 12)
    bits = tl.arange(0, MAX_PRECISION)
    sums = tl.zeros([64, MAX_PRECISION], full)
    for k in range(0, count, 64):
        some = k + tl.arange(0, 64)
        sums += tl.load(squares + (first + some[:, None]) * MAX_PRECISION + bits, mask=some[:, None] < count, other=0.0)
    at = _entry(table, layer, 7).to(tl.pointer_type(full)) + bits
    tl.store(at, tl.sum(sums, 0), mask=bits < _entry(table, layer, 9))


@lru_cache(maxsize=16)
def _on_device(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """The values as a vector on the device; sent again, without waiting for it, only when they have changed."""
    vector = torch.tensor(values, dtype=dtype)
    return (vector.pin_memory() if device.type == "cuda" else vector).to(device, non_blocking=True)


@lru_cache(maxsize=16)
def _pieces(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
    """Tensor and first weight of every piece ``[K, 2]``, and by tensor its first piece and how many it has."""
    rows = [(layer, start) for layer, size in enumerate(sizes) for start in range(0, size, PIECE)]
    counts = [-(-size // PIECE) for size in sizes]
    firsts = (0, *accumulate(counts))
    entries = tuple(chain.from_iterable(rows))
    return _on_device(entries, torch.int64, device), tuple(zip(firsts, counts, strict=False))


def plane_step_(tensors: Sequence[PlaneTensors], rates: Rates) -> None:
    """The step, for tensors on a GPU in float32 or float64, with planes in that dtype or in bfloat16."""
    check_tensors(tensors)
    device = tensors[0].planes.device
    # Triton launches on the current device, wherever the tensors are.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        _launch(tensors, rates)


def _launch(tensors: Sequence[PlaneTensors], rates: Rates) -> None:
    like = tensors[0].scale
    pieces, of_tensor = _pieces(tuple(t.weight.numel() for t in tensors), like.device)
    rows = [(*(x.data_ptr() for x in t[:8]), t.weight.numel(), len(t.decay), int(t.clip), *places)
            for t, places in zip(tensors, of_tensor, strict=True)]  # fmt: skip
    table = _on_device(tuple(chain.from_iterable(rows)), torch.int64, like.device)
    rate = _on_device(rates[:3], like.dtype, like.device)
    count = len(pieces) // 2
    dots, steps = like.new_empty(count), like.new_empty(2 * len(tensors))
    squares = like.new_zeros(count, MAX_PRECISION.value)
    full, stored = _DTYPES[like.dtype], _DTYPES[tensors[0].planes.dtype]
    magic = 1.5 * 2.0 ** (52 if like.dtype == torch.float64 else 23)
    dot_kernel[(count,)](table, pieces, dots, full, PIECE)
    scale_kernel[(len(tensors),)](table, rate, dots, steps, full)
    step_kernel[(count,)](table, rate, pieces, steps, squares, rates.seed, full, stored, magic, PIECE)
    squares_kernel[(len(tensors),)](table, squares, full)
