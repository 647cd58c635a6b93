"""The accuracy-size front of one group: its points, the uniform line, and how far a point is from that line."""

import math

from bsq_lightning.reports.table import Row


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


def uniform_line(rows: list[Row], counting: str) -> list[tuple[float, float]]:
    """The best finished uniform run at each size, (compression, test accuracy) by rising compression."""
    best: dict[float, float] = {}
    for row in rows:
        size, accuracy = row.compression(counting), row.test_accuracy
        if row.setting.baseline and size and accuracy:
            best[size.mean] = max(accuracy.mean, best.get(size.mean, -math.inf))
    return sorted(best.items())


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


def row_above_line(rows: list[Row], row: Row, counting: str = "paper") -> float | None:
    """How far a row's mean test accuracy is above the uniform line at its mean size; None for the line itself."""
    size, accuracy = row.compression(counting), row.test_accuracy
    if row.setting.baseline or row.setting.method == "float" or not size or not accuracy:
        return None
    return above_line(uniform_line(rows, counting), size.mean, accuracy.mean)
