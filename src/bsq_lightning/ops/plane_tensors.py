"""What a step on bit planes works on, and the checks that stand before every way to take it.

The ways in ``plane_step_cpu.py`` and ``plane_step_cuda.py`` are compiled: they believe sizes, dtypes and addresses, and
a file of somebody else may have brought them.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from bsq_lightning.ops.bit_planes import MAX_PRECISION


class PlaneTensors(NamedTuple):
    """What belongs to one weight tensor of shape S with n >= 1 bits; all but ``grad`` and ``decay`` are written.

    Args:
        planes: ``[2, n, *S]``, in the dtype of W or in bfloat16, which is then rounded up or down by chance.
        momentum: as ``planes``.
        grad: G, ``[*S]``.
        weight: W, ``[*S]``.
        scale: 0-d.
        scale_momentum: 0-d.
        decay: ``[n]``, factor of the plane in its own gradient, beside weight decay: that of the group lasso.
        squares: ``[n]``, gets ``plane_squares`` of the new planes, for the next step's lasso.
        clip: whether codes are clipped to ``+-(2^n - 1)``.
        extra: gradients of planes ``[2, n, *S]`` and scale that come from elsewhere, or None.
    """

    planes: Tensor
    momentum: Tensor
    grad: Tensor
    weight: Tensor
    scale: Tensor
    scale_momentum: Tensor
    decay: Tensor
    squares: Tensor
    clip: bool
    extra: Sequence[Tensor] | None = None


class Rates(NamedTuple):
    """Hyper-parameters of SGD, and what the rounding of planes in 16 bits is drawn from.

    ``seed`` is another one at every step since the last adjustment, and the same on all ranks, whose planes would
    drift apart otherwise.
    """

    lr: float
    momentum: float
    weight_decay: float
    seed: int = 0


def check_tensors(tensors: Sequence[PlaneTensors], contiguous: bool = True) -> None:
    """Refuses what compiled code would read or write beyond its end.

    Args:
        tensors: what is stepped together.
        contiguous: whether the way needs its tensors dense, in the order of their indices.

    Raises:
        ValueError: a number of planes outside 1..MAX_PRECISION, or a part of another shape, dtype, device or layout.
    """
    kinds = {(t.weight.dtype, t.planes.dtype, t.weight.device) for t in tensors}
    if contiguous and len(kinds) > 1:
        raise ValueError(f"tensors of one compiled step are of one kind, not of {len(kinds)}: {kinds}")
    for t in tensors:
        number = t.planes.shape[1] if t.planes.dim() > 1 else 0
        if not 1 <= number <= MAX_PRECISION:
            raise ValueError(
                f"a tensor of {list(t.weight.shape)} has {number} bit planes, and a step takes 1 to {MAX_PRECISION}: "
                "the checkpoint it is from was not written by a run, start from another"
            )
        bits, shape = (number,), tuple(t.weight.shape)
        expected = (
            (2, number, *shape), (2, number, *shape), shape, shape, (), (), bits, bits,
        )  # fmt: skip
        full, kept, device = t.weight.dtype, t.planes.dtype, t.weight.device
        dtypes = (kept, kept, *[full] * 6)
        for name, tensor, size, dtype in zip(t._fields, t[:8], expected, dtypes, strict=False):
            if tensor.shape != size:
                raise ValueError(
                    f"{name} of a tensor of {number} bits is {list(tensor.shape)}, not {list(size)}: after "
                    "adjust_precision_ the optimizer has to forget_momentum_()"
                )
            if tensor.dtype != dtype or tensor.device != device or tensor.layout != torch.strided:
                raise ValueError(
                    f"{name} is {tensor.dtype} on {tensor.device} ({tensor.layout}), not {dtype} on {device} "
                    "(torch.strided): the state of the optimizer is not that of this network"
                )
            if contiguous and not tensor.is_contiguous():
                raise ValueError(f"{name} is not contiguous (strides {tensor.stride()}), which a compiled step needs")
