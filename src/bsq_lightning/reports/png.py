"""The figures as PNG, for papers and for Markdown: the front in two countings, bits per layer, bits over epochs."""

import io
from typing import Any

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#b0568c", "#e69f00", "#56b4e9")
LINE, QUIET = "#3d444d", "#66707c"
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
}


def png_files(group: dict[str, Any], runs: list[dict[str, Any]]) -> dict[str, bytes]:
    """Images by name (``front``, ``bits``, ``epochs``) of one group of ``page_data``; what has no data is left out.

    Raises:
        ModuleNotFoundError: matplotlib is not installed; the message says how to install it.
    """
    try:
        import matplotlib
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reports draw PNG with matplotlib: pip install 'bsq_lightning[report]'") from error
    with matplotlib.rc_context(STYLE):
        made = {"front": _front(group, runs), "bits": _bits(group, runs), "epochs": _epochs(group, runs)}
    return {name: content for name, content in made.items() if content is not None}


def curve_colours(group: dict[str, Any]) -> dict[str, str]:
    """A colour for each curve; the first of a baseline is the dark line to beat."""
    colours: dict[str, str] = {}
    taken = 0
    for row in group["rows"]:
        if row["curve"] in colours or row["method"] == "float":
            continue
        if row["baseline"] and LINE not in colours.values():
            colours[row["curve"]] = LINE
        else:
            colours[row["curve"]] = COLOURS[taken % len(COLOURS)]
            taken += 1
    return colours


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


def _front(group: dict[str, Any], runs: list[dict[str, Any]]) -> bytes | None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, ScalarFormatter

    colours = curve_colours(group)
    drawn = [row for row in group["rows"] if row["acc"] is not None and row["x"]]
    open_ = [
        (row, runs[i])
        for row in group["rows"]
        for i in row["runs"]
        if runs[i]["state"] != "done" and runs[i]["valacc"] is not None and runs[i]["x"] and row["method"] != "float"
    ]
    if not drawn and not open_:
        return None
    figure = Figure(figsize=(11, 5.2), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for axis, counting in zip(axes, ("paper", "signed"), strict=True):
        for curve, colour in colours.items():
            points = sorted(
                (r for r in drawn if r["curve"] == curve and r["x"][counting]["c"]), key=lambda r: r["x"][counting]["c"]
            )
            if not points:
                continue
            uniform = points[0]["baseline"]
            axis.errorbar(
                [p["x"][counting]["c"] for p in points],
                [p["acc"] for p in points],
                yerr=[p["sd"] or 0 for p in points],
                xerr=[p["x"][counting]["csd"] or 0 for p in points],
                color=colour,
                marker="s" if uniform else "o",
                markersize=5,
                linewidth=2 if uniform else 1.2,
                elinewidth=0.8,
                capsize=2,
                label=curve + (": the line to beat" if uniform else ""),
                zorder=3,
            )
        label: str | None = "unfinished: newest validation accuracy"
        for row, run in open_:
            if run["x"][counting]["c"]:
                axis.plot(
                    run["x"][counting]["c"], run["valacc"], "o", mfc="none", color=colours[row["curve"]], label=label
                )
                label = None
        for row in (row for row in group["rows"] if row["method"] == "float" and row["acc"] is not None):
            axis.axhline(row["acc"], color=QUIET, linewidth=0.8, linestyle="--", label=f"float {row['acc']:.2f} %")
        if counting == "paper":
            accuracies = [row["acc"] for row in drawn] + [run["valacc"] for _, run in open_]
            sizes = [
                part["x"][counting]["c"] for part in (*drawn, *(run for _, run in open_)) if part["x"][counting]["c"]
            ]
            low, high = accuracy_window(accuracies)
            floats = [row["acc"] for row in group["rows"] if row["method"] == "float" and row["acc"] is not None]
            axis.set_ylim(low, max([high, *(value + 0.1 for value in floats if value < high + 2 * (high - low))]))
            below = sum(value < low for value in accuracies)
            if below:
                text = f"{below} {'point lies' if below == 1 else 'points lie'} below"
                axis.text(0.99, 0.02, text, transform=axis.transAxes, ha="right", color=QUIET, fontsize=8)
            near = [p for p in group["published"] if sizes and min(sizes) / 1.5 < p["c"] < max(sizes) * 1.5]
            _published(axis, [p for p in near if axis.get_ylim()[0] < p["acc"] < axis.get_ylim()[1]])
        low, high = axis.get_xlim()
        if min(line.get_xdata()[0] for line in axis.lines) > 0 and high > 3 * max(low, 0.1):
            axis.set_xscale("log")
            ticks = [t for t in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 200) if max(low, 0.5) <= t <= high]
            axis.set_xticks(ticks)
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(
            "times smaller than float, " + {"paper": "paper's counting", "signed": "with the sign bit"}[counting]
        )
    axes[0].set_ylabel("test accuracy, %")
    figure.suptitle(f"{group['model']} on {group['data']}", x=0.01, ha="left", fontweight="bold")
    handles = {text: handle for axis in axes for handle, text in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside lower left", ncols=3)
    return _png(figure)


def _published(axis: Any, points: list[dict[str, Any]]) -> None:
    for known, label in (
        (True, "published: read in a secondary summary (in part)"),
        (False, "published: recalled, unverified"),
    ):
        some = [point for point in points if point["from"].startswith("recalled") != known]
        if some:
            face = QUIET if known else "none"
            axis.plot(
                [p["c"] for p in some],
                [p["acc"] for p in some],
                "d",
                color=QUIET,
                mfc=face,
                label=label,
                ms=5,
                zorder=2,
            )
        for point in some:
            axis.annotate(
                point["name"],
                (point["c"], point["acc"]),
                (0, 5),
                textcoords="offset points",
                color=QUIET,
                fontsize=7,
                ha="center",
            )


def _bits(group: dict[str, Any], runs: list[dict[str, Any]]) -> bytes | None:
    from matplotlib import colormaps
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    layers, places, z = (group["bits"][name] for name in ("layers", "runs", "z"))
    if not places:
        return None
    most = max(8, max(bits for row in z for bits in row if bits is not None))
    blues = colormaps["Blues"]
    colours = ListedColormap(["#d55e00", *(blues(0.08 + 0.85 * i / max(most - 1, 1)) for i in range(most))])
    few = len(places) <= 40
    height = 1.8 + (0.24 if few else max(0.05, 9 / len(places))) * len(places)
    figure = Figure(figsize=(max(6.0, 3.2 + 0.28 * min(len(layers), 60)), height), layout="constrained")
    axis = figure.subplots()
    values = [[float("nan") if bits is None else bits for bits in row] for row in z]
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
                        str(bits),
                        ha="center",
                        va="center",
                        fontsize=7,
                        color="white" if bits > 0.6 * most else "#1b1f24",
                    )
    figure.colorbar(image, ax=axis, ticks=range(0, most + 1, 1 if most <= 8 else 2), label="bits", fraction=0.03)
    axis.set_title(f"Bits per layer, {group['model']} on {group['data']}", loc="left", fontweight="bold")
    return _png(figure)


def _epochs(group: dict[str, Any], runs: list[dict[str, Any]]) -> bytes | None:
    from matplotlib.figure import Figure

    colours = curve_colours(group)
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
            color=colours.get(row["curve"], QUIET),
            linewidth=width,
            alpha=0.8,
            label=label,
        )
        if curves.get("mean_precision") and row["method"] != "float":
            bits = [float("nan") if value in (None, 32.0) else value for value in curves["mean_precision"]]
            axes[1].plot(
                range(1, len(bits) + 1),
                bits,
                color=colours.get(row["curve"], QUIET),
                linewidth=width,
                alpha=0.8,
                drawstyle="steps-mid",
            )
    axes[0].set_ylabel("validation accuracy, %")
    axes[1].set_ylabel("mean bits per weight")
    for axis in axes:
        axis.set_xlabel("epoch, all stages")
    figure.legend(loc="outside lower left", ncols=3)
    return _png(figure)


def _png(figure: Any) -> bytes:
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=130)
    return out.getvalue()
