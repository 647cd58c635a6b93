"""Which alphas to try next, from the trials so far (pure arithmetic, no training)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

LARGEST_ALPHA, SMALLEST_ALPHA = 1e6, 1e-9


@dataclass(frozen=True)
class Trial:
    """One alpha: the size it ended with, in the target's unit, and why it was stopped or failed, if it was."""

    alpha: float
    size: float
    stopped: str = ""
    failed: str = ""


def inside(trial: Trial, budget: float) -> bool:
    """Whether the trial bounds alpha from above. A failed trial does: training breaks down at a large alpha."""
    return trial.size <= budget or bool(trial.failed)


def next_alphas(trials: Sequence[Trial], budget: float, start: float, factor: float, count: int = 1) -> list[float]:
    """Up to ``count`` alphas to try together; none when they cannot come closer.

    Size falls as alpha rises. Until the budget lies between two trials, alpha is multiplied (too large) or divided
    (inside) by ``factor``; then the interval between the largest alpha that is too large and the smallest inside is
    cut into equal parts on a logarithmic scale.

    Example:
        >>> next_alphas([], 60, start=1e-3, factor=4)
        [0.001]
        >>> next_alphas([Trial(1e-3, 90)], 60, start=1e-3, factor=4)
        [0.004]
        >>> next_alphas([Trial(1e-3, 90), Trial(4e-3, 50)], 60, start=1e-3, factor=4)
        [0.002]
    """
    if not trials:
        return [_rounded(start * factor**i) for i in range(count)]
    within = [trial.alpha for trial in trials if inside(trial, budget)]
    # Noise can put a large network above a small one; the bracket is then the narrowest that is one.
    upper = min(within, default=None)
    lower = max((t.alpha for t in trials if not inside(t, budget) and (upper is None or t.alpha < upper)), default=None)
    if upper is None:
        assert lower is not None
        proposed = [lower * factor**i for i in range(1, count + 1)]
    elif lower is None:
        proposed = [upper / factor**i for i in range(1, count + 1)]
    else:
        ratio = (upper / lower) ** (1 / (count + 1))
        proposed = [lower * ratio**i for i in range(1, count + 1)] if ratio > 1.01 else []
    tried = {trial.alpha for trial in trials}
    alphas = [_rounded(alpha) for alpha in proposed if SMALLEST_ALPHA <= alpha <= LARGEST_ALPHA]
    return [alpha for alpha in dict.fromkeys(alphas) if alpha not in tried]


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


def _rounded(alpha: float) -> float:
    return float(f"{alpha:.3g}") if math.isfinite(alpha) else alpha
