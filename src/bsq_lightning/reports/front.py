"""The accuracy-size front of one group: its points, the lines to beat, and how far a point is from these."""

import math
from typing import NamedTuple

from bsq_lightning.reports.table import Row, Spread


def pareto(points: list[tuple[float, float]]) -> list[int]:
    """Indices of the (compression, accuracy) points that no other point beats in both, by falling accuracy.

    Example:
        >>> pareto([(4.0, 92.0), (8.0, 91.0), (6.0, 90.0), (16.0, 88.0)])
        [0, 1, 3]
    """
    front, best = [], -math.inf
    for i in sorted(range(len(points)), key=lambda i: (-points[i][0], -points[i][1])):
        if points[i][1] > best:
            best = points[i][1]
            front.append(i)
    return front[::-1]


class Above(NamedTuple):
    """How far a point is above the highest of the lines at its size, in accuracy, and which line that is."""

    difference: float
    line: str


def lines(rows: list[Row], counting: str) -> dict[str, list[tuple[float, float]]]:
    """The lines to beat, one for each baseline: its best finished run at each size, (compression, test accuracy) by
    rising compression."""
    best: dict[str, dict[float, float]] = {}
    for row in rows:
        size, accuracy = row.compression(counting), row.test_accuracy
        if row.setting.baseline and size and accuracy:
            line = best.setdefault(row.setting.method, {})
            line[size.mean] = max(accuracy.mean, line.get(size.mean, -math.inf))
    return {name: sorted(line.items()) for name, line in best.items()}


def above_line(line: list[tuple[float, float]], compression: float, accuracy: float) -> float | None:
    """Accuracy minus that of the line at equal size (straight in the logarithm of the size).

    None outside the sizes of the line: nothing is extrapolated, but within 5 % of an end its accuracy is taken.

    Example:
        >>> round(above_line([(4.0, 0.92), (16.0, 0.90)], 8.0, 0.92), 4), above_line([(4.0, 0.92)], 8.0, 0.92)
        (0.01, None)
    """
    if not line:
        return None
    for (x0, y0), (x1, y1) in zip(line, line[1:], strict=False):
        if x0 <= compression <= x1:
            return accuracy - (y0 + (y1 - y0) * math.log(compression / x0) / math.log(x1 / x0))
    x, y = min(line, key=lambda point: abs(math.log(compression / point[0])))
    return accuracy - y if abs(math.log(compression / x)) <= math.log(1.05) else None


def row_above_line(rows: list[Row], row: Row, counting: str = "paper") -> Above | None:
    """How far a row's mean test accuracy is above the lines at its mean size; None for a line itself, and where no line
    encloses the size."""
    size, accuracy = row.compression(counting), row.test_accuracy
    if row.setting.baseline or row.setting.method == "float" or not size or not accuracy:
        return None
    to_each = {name: above_line(line, size.mean, accuracy.mean) for name, line in lines(rows, counting).items()}
    known = [Above(difference, name) for name, difference in to_each.items() if difference is not None]
    return min(known, default=None)


def accuracy_bar(row: Row) -> tuple[float, float] | None:
    """What to draw around a row's mean test accuracy: the range of its seeds; for one seed, what the draw of so many
    test images leaves open (Wilson's interval of a share, 95 %). None where that is unknown."""
    accuracy = row.test_accuracy
    if accuracy is None:
        return None
    if accuracy.n > 1:
        return accuracy.low, accuracy.high
    images = row.done[0].test_images
    return wilson(accuracy.mean, images) if images and 0 <= accuracy.mean <= 1 else None


def wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a share that was seen in ``n`` draws (Wilson, 1927); 95 % of the time the true one is inside.

    Example:
        >>> [round(value, 4) for value in wilson(0.92, 10000)]
        [0.9145, 0.9252]
    """
    centre, scale = share + z * z / (2 * n), 1 + z * z / n
    half = z * math.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    return (centre - half) / scale, min((centre + half) / scale, 1.0)


def float_accuracy(rows: list[Row]) -> Spread | None:
    """Test accuracy of the float network: of its own runs where there are some, else what the others began with."""
    own = [row.test_accuracy for row in rows if row.setting.method == "float" and row.test_accuracy]
    if own:
        return max(own, key=lambda accuracy: accuracy.mean)
    return Spread.of(sorted({run.float_accuracy for row in rows for run in row.done if run.float_accuracy is not None}))
