"""SWIS, shared weight bit sparsity (Li et al., arXiv 2103.01308): a group of weights shares its few set bits.

Only the abstract could be read: the method is recalled in outline and made precise by derivation.
"""

import torch
from torch import Tensor

from bsq_lightning.ops.shared_shifts import share_in_filters, share_shifts, to_groups
from bsq_lightning.post_training.base import as_rows, check_positive, check_whole
from bsq_lightning.post_training.round import Round
from bsq_lightning.post_training.schedule import schedule_filters
from bsq_lightning.quantized_tensor import QuantizedTensor, Shifts

METRICS = ("mse", "mse++")


class SWIS:
    """Codes of B bits in which each group of M weights uses N bit positions: ``sign sum_j mask_j 2^(s_j)``.

    Positions are any N of B, or N that follow each other (SWIS-C). Groups run along the channels of a filter at one
    place of its kernel and do not cross filters; the last one of a filter is filled up with zeros.

    Args:
        shifts: positions N of a group; with a fraction, a mean over filters, which needs ``schedule="greedy"``.
        group: weights M of a group.
        bits: bits B of the codes before, 2 to 10.
        consecutive: SWIS-C.
        metric: ``mse``, or ``mse++`` (recalled, unverified): ``sum e^2 + alpha (sum e)^2``, errors that cancel in a
            group count less, with one pass over coordinates because nearest rounding is not its optimum.
        alpha: weight of the second term (1 unverified; on a small network smaller ones did better).
        schedule: ``uniform``: every filter has N. ``greedy``: filters of one tile share a number, see ``schedule``.
        tile: filters A that the array runs in lock step.
        double: the array takes two shifts a cycle, so that numbers are even.
        step: of the codes before, see ``Round``.
        per_channel: a step for each filter, else one for the tensor.

    Raises:
        ValueError: an argument out of range.

    Example:
        >>> method = SWIS(2, group=4, bits=4, step="max")
        >>> method(torch.tensor([[10.0, -2.0, 8.0, 0.0], [15.0, 4.0, -3.0, 13.0]])).codes
        tensor([[10, -2,  8,  0],
                [12,  4, -4, 12]], dtype=torch.int32)
    """

    def __init__(
        self,
        shifts: float,
        group: int = 4,
        bits: int = 8,
        consecutive: bool = False,
        metric: str = "mse",
        alpha: float = 1.0,
        schedule: str = "uniform",
        tile: int = 8,
        double: bool = False,
        step: str = "max",
        per_channel: bool = False,
    ) -> None:
        self.round = Round(check_whole("bits", bits, 2, 10), step, per_channel)
        if not 1 <= shifts <= bits:
            raise ValueError(f"shifts is a mean number of bit positions from 1 to bits={bits}, not {shifts!r}")
        if schedule not in ("uniform", "greedy") or (schedule == "uniform" and shifts != int(shifts)):
            raise ValueError(
                f"schedule is greedy, or uniform with a whole number of shifts, not {schedule!r} with {shifts!r}"
            )
        if metric not in METRICS:
            raise ValueError(f"metric is one of {', '.join(METRICS)}, not {metric!r}")
        self.alpha = check_positive("alpha", alpha, zero=True) if metric == "mse++" else 0.0
        self.shifts, self.group, self.consecutive = shifts, check_whole("group", group, 1, 1024), consecutive
        self.schedule, self.tile, self.double = schedule, check_whole("tile", tile, 1, 65536), double

    @torch.no_grad()
    def __call__(self, weight: Tensor, *, inputs: Tensor | None = None) -> QuantizedTensor:
        """Quantizes ``weight``; ``inputs`` are not looked at."""
        as_rows(weight)
        return self.share(self.round(weight))

    def share(self, tensor: QuantizedTensor) -> QuantizedTensor:
        """The same for codes that another method left, a sign beside them: SWIS after BSQ, which keeps BSQ's steps.

        Where a tensor has fewer bits than ``shifts``, all of them stay.

        Args:
            tensor: plain codes with their signs extra, ``precision`` whole.

        Raises:
            ValueError: codes of another kind.
        """
        bits = tensor.precision
        if tensor.extra is not None or tensor.sign != "extra" or not isinstance(bits, int) or tensor.codes.dim() < 2:
            raise ValueError(
                "bits are shared by plain codes, of as many bits in every channel and with signs beside: no others"
            )
        check_whole("the precision of codes that share bits", bits, 1, 10)
        codes = tensor.codes
        if self.schedule == "greedy" and self.shifts < bits:
            groups = to_groups(codes.movedim(1, -1).flatten(1), self.group)
            number = self._scheduled(groups, tensor.step, bits)
        else:
            number = torch.full((len(codes),), min(int(self.shifts), bits), device=codes.device)
        shared = share_in_filters(codes, number, self.group, bits, self.consecutive, self.alpha)
        shifts = Shifts(self.group, number.to(torch.int32), self.consecutive)
        return QuantizedTensor(shared, tensor.step, bits, extra=shifts)

    def _scheduled(self, groups: Tensor, step: Tensor, bits: int) -> Tensor:
        errors = torch.stack(
            [
                (groups - share_shifts(groups, n, bits, self.consecutive, self.alpha)).double().square().sum((1, 2))
                for n in range(1, bits + 1)
            ],
            1,
        )
        errors = errors * step.double().reshape(-1, 1).square()
        return schedule_filters(errors, self.shifts, self.tile, double=self.double).shifts
