"""The figures for papers and for Markdown, as PNG, PDF and SVG: the front in two countings and against bit operations,
bits per layer, bits over epochs."""

import io
import logging
import math
from typing import Any

from bsq_lightning.reports.front import pareto

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0568c", "#e69f00", "#56b4e9")
LINE, QUIET = "#3d444d", "#66707c"
DASHES = ("solid", "dashed", "dotted", "dashdot")
BASELINE_MARKERS: dict[str, str] = dict(zip(DASHES, "svXP", strict=True))  # of baselines, all of one colour
FORMATS = ("png", "pdf", "svg")
MOST_LABELS = 24
LABEL_PLACES = (  # in points from what is labelled, and which part of the text is there; the first that is free
    (4, 4, "left", "bottom"), (4, -4, "left", "top"), (-4, 4, "right", "bottom"), (-4, -4, "right", "top"),
    (0, 6, "center", "bottom"), (0, -6, "center", "top"), (8, 0, "left", "center"), (-8, 0, "right", "center"),
    (4, 14, "left", "bottom"), (4, -14, "left", "top"), (-4, 14, "right", "bottom"), (-4, -14, "right", "top"),
)  # fmt: skip
SIZES = {
    "paper": "times smaller than float, paper's counting",
    "signed": "times smaller than float, with the sign bit",
    "gbops": "bit operations of one image, in 1e9",
}
STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e7eb",
    "axes.edgecolor": "#b5bcc5",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "text.parse_math": False,  # names of folders are no formulas
    "svg.fonttype": "none",
    "svg.hashsalt": "bsq_lightning",
    "pdf.fonttype": 42,
}


def figure_files(group: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, bytes]:
    """Files by name (``front.png``, ``front.pdf``, ``front.svg``, ``bops``, ``bits``, ``epochs``) of one group of
    ``page_data``, each figure drawn once; what has no data is left out.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reports draw with matplotlib: pip install 'bsq_lightning[report]'") from error
    with matplotlib.rc_context(STYLE):
        made = {
            "front": front_figure(group, runs, ("paper", "signed")),
            "bops": front_figure(group, runs, ("gbops",)),
            "bits": bits_figure(group, runs),
            "epochs": _epochs(group, runs),
        }
        return {
            f"{name}.{form}": _rendered(figure, form)
            for name, figure in made.items() if figure is not None
            for form in FORMATS
        }  # fmt: skip


def curve_styles(group: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Colour and dash of each curve; the baselines are the dark lines to beat."""
    styles: dict[str, tuple[str, str]] = {}
    taken = {True: 0, False: 0}
    for row in group["rows"]:
        if row["curve"] in styles or row["method"] == "float":
            continue
        n, base = taken[row["baseline"]], row["baseline"]
        dash = DASHES[n % 4] if base else DASHES[n // len(COLOURS) % 4]
        styles[row["curve"]] = (LINE if base else COLOURS[n % len(COLOURS)], dash)
        taken[base] += 1
    return styles


def along_knob(points: list[Any]) -> list[Any]:
    """Pairs of a row and its place in the order of the knob; where it is no number (a scheme), by size."""
    return sorted(points, key=lambda pair: pair[1][0] if pair[0]["at"] is None else pair[0]["at"])


def accuracy_window(accuracies: list[float]) -> tuple[float, float]:
    """Percent from and to which the axis goes: the bulk of the values, a diverged run left below.

    Example:
        >>> [round(value, 2) for value in accuracy_window([92.0, 91.0, 91.5, 10.0])]
        [90.8, 92.2]
    """
    values = sorted(accuracies)
    quarter = values[len(values) // 4]
    spread = max(values[-1] - quarter, 0.6)
    low = next(value for value in values if value >= quarter - 3 * spread)
    pad = max(0.2 * (values[-1] - low), 0.15)
    return low - pad, values[-1] + pad


def _place(point: dict[str, Any], axis: str) -> tuple[float, float, float] | None:
    """Where a row or a run stands on an axis, with the smallest and the largest of its seeds."""
    if axis == "gbops":
        at, low, high = (point.get(key) for key in ("gb", "gblo", "gbhi"))
    else:
        size = (point["x"] or {}).get(axis) or {}
        at, low, high = (size.get(key) for key in ("c", "lo", "hi"))
    return (at, at if low is None else low, at if high is None else high) if at else None


def front_figure(group: dict[str, Any], runs: list[dict[str, Any]], kinds: tuple[str, ...]) -> Any:
    """Accuracy against each kind of size, every point inside: those far below the others stand in a strip of their own
    under a break of the axis."""
    from matplotlib.figure import Figure

    drawn = [row for row in group["rows"] if row["acc"] is not None and _place(row, kinds[0])]
    open_ = [
        (row, runs[i])
        for row in group["rows"]
        for i in row["runs"]
        if runs[i]["state"] != "done" and runs[i]["valacc"] is not None and _place(runs[i], kinds[0])
        if row["method"] != "float"
    ]
    if not drawn and not open_:
        return None
    published = group["published"] if "paper" in kinds else []
    own = [row["acc"] for row in drawn] + [run["valacc"] for _, run in open_]
    low, high = accuracy_window(own)
    low = min([low, *(row["lo"] - 0.1 for row in drawn if row["lo"] is not None and row["acc"] >= low)])
    near = [p["acc"] for p in published if low - 2 < p["acc"] < high + 2]
    high = max([high, *(row["hi"] for row in drawn if row["hi"] is not None)])
    low, high = min([low, *(value - 0.2 for value in near)]), max([high, *(value + 0.3 for value in near)])
    if group["float"] is not None:
        high = max(high, group["float"] + 0.1 * (high - low))
    below = [value for value in (*own, *(p["acc"] for p in published)) if value < low]
    figure = Figure(figsize=(5.8 * len(kinds), 5.4), layout="constrained")
    ratios = [5, 1] if below else [1]
    axes = figure.subplots(len(ratios), len(kinds), sharex="col", squeeze=False, height_ratios=ratios)
    for column, kind in enumerate(kinds):
        for axis in axes[:, column]:
            _draw_front(axis, group, drawn, open_, kind)
        axes[0, column].set_ylim(low, high)
        if below:
            _break(axes[0, column], axes[1, column], min(below), max(below))
        _size_axis(axes[-1, column], kind)
    for axis in axes[:, 1:].flat:
        axis.tick_params(labelleft=False)
    figure.supylabel("test accuracy, %", fontsize=9)
    figure.suptitle(f"{group['model']} on {group['data']}", x=0.01, ha="left", fontweight="bold")
    _colour_bar(figure, axes, group)
    handles = {
        text: handle for axis in axes.flat for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=3)
    figure.draw_without_rendering()  # only then places on the page are known
    for axis in axes.flat:
        _place_labels(axis)
    return figure


def _place_labels(axis: Any) -> None:
    """Each label where it covers the least of points, error bars, lines and the labels before it."""
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

    labels = [text for text in axis.texts if isinstance(text, Annotation)]
    taken = [Bbox.from_bounds(x - 4, y - 4, 8, 8) for x, y in (axis.transData.transform(label.xy) for label in labels)]
    drawn = [line.get_transform().transform_path(line.get_path()) for line in axis.lines]
    drawn += [bars.get_transform().transform_path(path) for bars in axis.collections for path in bars.get_paths()]
    for label in labels:
        found = []
        for x, y, horizontal, vertical in LABEL_PLACES:
            label.set(position=(x, y), horizontalalignment=horizontal, verticalalignment=vertical)
            box = label.get_window_extent()
            overlaps = [Bbox.intersection(box, other) for other in taken]
            covered = sum(each.width * each.height for each in overlaps if each is not None)
            outside = not axis.bbox.contains(box.x0, box.y0) or not axis.bbox.contains(box.x1, box.y1)
            crossed = sum(path.intersects_bbox(box, filled=False) for path in drawn)
            found.append((covered + 1000 * outside, crossed, len(found), box))
        *_, best, box = min(found, key=lambda each: each[:3])
        x, y, horizontal, vertical = LABEL_PLACES[best]
        label.set(position=(x, y), horizontalalignment=horizontal, verticalalignment=vertical)
        taken.append(box)


def _grades(group: dict[str, Any]) -> Any:
    from matplotlib.colors import LogNorm

    return LogNorm(group["graded"]["from"], group["graded"]["to"])


def _colour_bar(figure: Any, axes: Any, group: dict[str, Any]) -> None:
    """What the colours of many points say of the knob."""
    if not group["graded"]:
        return
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import NullLocator

    first, last = group["graded"]["from"], group["graded"]["to"]
    ticks = [first * (last / first) ** (i / 4) for i in range(5)]
    bar = figure.colorbar(ScalarMappable(_grades(group), "viridis"), ax=axes, label=group["graded"]["name"], pad=0.01)
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks])


def _draw_front(axis: Any, group: dict[str, Any], drawn: list[Any], open_: list[Any], kind: str) -> None:
    from matplotlib import colormaps

    placed = [(row, _place(row, kind)) for row in drawn]
    placed = [(row, at) for row, at in placed if at is not None]
    smaller = kind == "gbops"
    best = pareto([(1 / at[0] if smaller else at[0], row["acc"]) for row, at in placed])
    if len(placed) > 2 and len(best) > 1:
        steps = sorted((placed[i][1][0], placed[i][0]["acc"]) for i in best)
        axis.plot(
            *zip(*steps, strict=True), color=COLOURS[0], alpha=0.28, linewidth=4, zorder=1, label="Pareto front",
            drawstyle="steps-post" if smaller else "steps-pre",
        )  # fmt: skip
    for curve, (colour, dash) in curve_styles(group).items():
        points = along_knob([pair for pair in placed if pair[0]["curve"] == curve])
        if not points:
            continue
        first = points[0][0]
        x, y = [at[0] for _, at in points], [row["acc"] for row, _ in points]
        graded = group["graded"] and first["knob"] == group["graded"]["key"] and not first["baseline"]
        axis.errorbar(
            x, y,
            yerr=[[max(row["acc"] - (row["acc"] if row["lo"] is None else row["lo"]), 0) for row, _ in points],
                  [max((row["acc"] if row["hi"] is None else row["hi"]) - row["acc"], 0) for row, _ in points]],
            xerr=[[at[0] - at[1] for _, at in points], [at[2] - at[0] for _, at in points]],
            color=colour, marker=BASELINE_MARKERS[dash] if first["baseline"] else "^" if first["knobless"] else "o",
            markersize=0 if graded else 5, linestyle="none" if first["knobless"] else dash,
            linewidth=2 if first["baseline"] else 0.6 if graded else 1.2, elinewidth=0.8, capsize=2,
            label=curve + (": a line to beat" if first["baseline"] else ""), zorder=3,
        )  # fmt: skip
        if graded:
            colours = colormaps["viridis"]([_grades(group)(row["at"]) for row, _ in points])
            axis.scatter(x, y, c=colours, s=26, zorder=4)
        elif len(drawn) <= MOST_LABELS:
            for row, at in points:
                axis.annotate(
                    row["short"], (at[0], row["acc"]), (0, 0), fontsize=7, color=colour,
                    textcoords="offset points", zorder=5, annotation_clip=True,
                )  # fmt: skip
    label: str | None = "unfinished: newest validation accuracy"
    for row, run in open_:
        if at := _place(run, kind):
            colour = curve_styles(group)[row["curve"]][0]
            axis.plot(at[0], run["valacc"], "o", mfc="none", color=colour, label=label)
            label = None
    if group["float"] is not None:
        text = f"float {group['float']:.2f} %"
        axis.axhline(group["float"], color=QUIET, linewidth=0.8, linestyle="--", label=text)
    if kind == "paper":
        _published(axis, group["published"])


def _break(upper: Any, lower: Any, low: float, high: float) -> None:
    """Marks the break between the two parts of an axis; the lower one holds what lies between ``low`` and ``high``."""
    pad = max(0.15 * (high - low), 0.5)
    lower.set_ylim(low - pad, high + pad)
    upper.spines["bottom"].set_visible(False)
    upper.tick_params(bottom=False)
    cut = {"marker": [(-1, -0.7), (1, 0.7)], "markersize": 8, "linestyle": "none", "color": QUIET, "clip_on": False}
    upper.plot([0], [0], transform=upper.transAxes, **cut)
    lower.plot([0], [1], transform=lower.transAxes, **cut)


def _size_axis(axis: Any, kind: str) -> None:
    from matplotlib.ticker import NullLocator, ScalarFormatter

    axis.set_xlabel(SIZES[kind])
    low, high = axis.get_xlim()
    positive = [x for line in axis.lines if line.get_transform() == axis.transData for x in line.get_xdata()]
    if not positive or min(positive) <= 0 or max(positive) < 3 * min(positive):
        return
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    ticks = [n * 10.0**k for k in range(-6, 7) for n in (1, 1.5, 2, 3, 4, 6, 8) if low <= n * 10.0**k <= high]
    axis.set_xticks(ticks if len(ticks) <= 12 else [t for t in ticks if f"{t:e}"[0] in "124" and f"{t:e}"[2] == "0"])
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_locator(NullLocator())


def _published(axis: Any, points: list[dict[str, Any]]) -> None:
    for known, label in (
        (True, "published: read in a secondary summary (in part)"),
        (False, "published: recalled, unverified"),
    ):
        some = [point for point in points if point["from"].startswith("recalled") != known]
        if some:
            face = QUIET if known else "none"
            x, y = [p["c"] for p in some], [p["acc"] for p in some]
            axis.plot(x, y, "d", color=QUIET, mfc=face, label=label, ms=5, zorder=2)
        for point in some:
            axis.annotate(
                point["name"], (point["c"], point["acc"]), (0, 0), textcoords="offset points", color=QUIET, fontsize=6,
                annotation_clip=True,
            )  # fmt: skip


def bits_figure(group: dict[str, Any], runs: list[dict[str, Any]]) -> Any:
    """Bits of every layer, a row for each run; None where no run has a scheme."""
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    layers, places, z = (group["bits"][name] for name in ("layers", "runs", "z"))
    if not places:
        return None
    most = max(8, max(math.ceil(bits) for row in z for bits in row if bits is not None))
    blues = colormaps["Blues"]
    colours = ListedColormap(["#d55e00", *(blues(0.08 + 0.85 * i / max(most - 1, 1)) for i in range(most))])
    few = len(places) <= 40
    height = 1.8 + (0.24 if few else max(0.05, 9 / len(places))) * len(places)
    figure = Figure(figsize=(max(6.0, 3.2 + 0.28 * min(len(layers), 60)), height), layout="constrained")
    axis = figure.subplots()
    # The colour of 0 is for layers that are empty, not for those that have lost most of their filters.
    values = [[float("nan") if bits is None else bits and max(1, bits) for bits in row] for row in z]
    image = axis.imshow(values, cmap=colours, vmin=-0.5, vmax=most + 0.5, aspect="auto", interpolation="nearest")
    axis.grid(visible=False)
    if few:
        axis.set_yticks(range(len(places)), [f"{runs[i]['label']}, seed {runs[i]['seed']}" for i in places], fontsize=8)
    else:
        axis.set_yticks([])
        axis.set_ylabel(f"{len(places)} runs, smallest last")
    if len(layers) <= 60:
        axis.set_xticks(range(len(layers)), layers, rotation=90, fontsize=7)
    else:
        axis.set_xlabel(f"{len(layers)} layers, first to last")
    if len(places) <= 30 and len(layers) <= 60:
        for y, row in enumerate(z):
            for x, bits in enumerate(row):
                if bits is not None:
                    axis.text(
                        x,
                        y,
                        f"{bits:.1f}" if bits % 1 else f"{bits:.0f}",
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if bits > 0.6 * most else "#1b1f24",
                    )
    figure.colorbar(image, ax=axis, ticks=range(0, most + 1, 1 if most <= 8 else 2), label="bits", fraction=0.03)
    axis.set_title(f"Bits per layer, {group['model']} on {group['data']}", loc="left", fontweight="bold")
    return figure


def _epochs(group: dict[str, Any], runs: list[dict[str, Any]]) -> Any:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    styles = curve_styles(group)
    graded = group["graded"]

    def colour(row: dict[str, Any]) -> Any:
        if graded and row["knob"] == graded["key"] and not row["baseline"]:
            return colormaps["viridis"](_grades(group)(row["at"]))
        return styles.get(row["curve"], (QUIET, ""))[0]

    drawn = [(row, runs[i]) for row in group["rows"] for i in row["runs"] if runs[i]["curves"].get("val/acc")]
    if not drawn:
        return None
    figure = Figure(figsize=(11, 3.8), layout="constrained")
    axes = figure.subplots(1, 2)
    seen: set[str] = set()
    width = 1.2 if len(drawn) <= 10 else 0.6
    for row, run in drawn:
        label = None if row["curve"] in seen else row["curve"]
        seen.add(row["curve"])
        curves = run["curves"]
        accuracy = [float("nan") if value is None else 100 * value for value in curves["val/acc"]]
        axes[0].plot(
            range(1, len(accuracy) + 1),
            accuracy,
            color=colour(row),
            linewidth=width,
            alpha=0.8,
            label=label,
        )
        if curves.get("mean_precision") and row["method"] != "float":
            bits = [float("nan") if value in (None, 32.0) else value for value in curves["mean_precision"]]
            axes[1].plot(
                range(1, len(bits) + 1),
                bits,
                color=colour(row),
                linewidth=width,
                alpha=0.8,
                drawstyle="steps-mid",
            )
    axes[0].set_ylabel("validation accuracy, %")
    axes[1].set_ylabel("mean bits per weight")
    for axis in axes:
        axis.set_xlabel("epoch, all stages")
    _colour_bar(figure, axes, group)
    figure.legend(loc="outside lower left", ncols=3)
    return figure


def _rendered(figure: Any, form: str) -> bytes:
    out = io.BytesIO()
    logging.getLogger("fontTools").setLevel(logging.WARNING)  # the PDF writer's: it tells what it leaves out of a font
    # Without dates, so that the same runs give the same files.
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    figure.savefig(out, format=form, dpi=130, metadata=dates.get(form))
    return out.getvalue()
