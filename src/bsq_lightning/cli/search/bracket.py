"""Which values of the knob to try next, from the trials so far (pure arithmetic, no training)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST, SMALLEST = 1e6, 1e-9


@dataclass(frozen=True)
class Trial:
    """One value of the knob and what came of it.

    Args:
        value: of the knob.
        size: in the target's unit: what the run left at its end, or where it was stopped.
        stopped: why it was stopped before its end, if it was.
        failed: the message of its failure, if it failed.
        refused: why it must not be delivered (a dead path, accuracy at chance), if so.
        finished: whether its last stage is done.
    """

    value: float
    size: float
    stopped: str = ""
    failed: str = ""
    refused: str = ""
    finished: bool = False

    @property
    def alive(self) -> bool:
        """Whether it may still be delivered."""
        return not (self.failed or self.refused)


def next_values(
    trials: Sequence[Trial], budget: float, start: float, factor: float, count: int = 1, grows: bool = False
) -> list[float]:
    """Up to ``count`` values to try together; none when they cannot come closer.

    Size falls as the pressure rises, which is the knob, or 1 / knob where size grows with it. Until the budget lies
    between two trials, the pressure is multiplied (too large) or divided (inside) by ``factor``; then the interval
    between the highest pressure that is too large and the lowest inside is cut into equal parts on a logarithmic scale.
    A trial that is broken bounds the pressure from above, as one inside does: training breaks down where it is high;
    but where a trial under more pressure is sound, from below.

    Example:
        >>> next_values([], 60, start=1e-3, factor=4)
        [0.001]
        >>> next_values([Trial(1e-3, 90)], 60, start=1e-3, factor=4)
        [0.004]
        >>> next_values([Trial(1e-3, 90), Trial(4e-3, 50)], 60, start=1e-3, factor=4)
        [0.002]
        >>> next_values([Trial(4, 90)], 60, start=4, factor=2, grows=True)
        [2.0]
    """
    sign = -1 if grows else 1
    if not trials:
        return [_rounded(start * factor ** (sign * i)) for i in range(count)]
    pressures = {trial: trial.value**sign for trial in trials}
    sound = [pressures[trial] for trial in trials if trial.alive and trial.size <= budget]
    bounding = [p for trial, p in pressures.items() if not trial.alive and p > max(sound, default=0.0)]
    # Noise can put a large network above a small one; the bracket is then the narrowest that is one.
    upper = min([*sound, *bounding], default=None)
    too_large = [p for trial, p in pressures.items() if trial.size > budget or not trial.alive]
    lower = max((p for p in too_large if upper is None or p < upper), default=None)
    if upper is None:
        assert lower is not None
        proposed = [lower * factor**i for i in range(1, count + 1)]
    elif lower is None:
        proposed = [upper / factor**i for i in range(1, count + 1)]
    else:
        ratio = (upper / lower) ** (1 / (count + 1))
        proposed = [lower * ratio**i for i in range(1, count + 1)] if ratio > 1.01 else []
    tried = {trial.value for trial in trials}
    values = [_rounded(pressure**sign) for pressure in proposed if SMALLEST <= pressure <= LARGEST]
    return [value for value in dict.fromkeys(values) if value not in tried]


def hopeless(sizes: Sequence[float], adjustments: int, budget: float, best: float) -> str:
    """Why a trial cannot end as the largest inside the budget; empty while it can.

    Args:
        sizes: at the start and after each adjustment so far.
        adjustments: how many there will be.
        budget: the largest size allowed.
        best: the largest size inside the budget found so far; 0 if none.

    Example:
        >>> hopeless([100, 90, 85], adjustments=3, budget=60, best=0)
        'too large: 85 now, at best 76.5 at the end, the budget is 60'
        >>> hopeless([100, 50, 40], adjustments=8, budget=60, best=55)
        'too small: 40 now, another run inside the budget has 55'
    """
    now, left = sizes[-1], adjustments - len(sizes) + 1
    if left <= 0:
        return ""
    if now <= budget and now < best:
        return f"too small: {now:.4g} now, another run inside the budget has {best:.4g}"
    if now < budget / 2:
        return f"too small: {now:.4g} now, the budget is {budget:.4g}"
    falls = [after / before for before, after in zip(sizes, sizes[1:], strict=False) if before]
    reached = now * min(falls, default=0.0) ** left
    if len(falls) > 1 and reached > budget:
        return f"too large: {now:.4g} now, at best {reached:.4g} at the end, the budget is {budget:.4g}"
    return ""


def _rounded(value: float) -> float:
    return float(f"{value:.3g}") if math.isfinite(value) else value
