"""Writes the report: page, Markdown, CSV, LaTeX and figures, each file whole or not at all."""

import re
from pathlib import Path

from bsq_lightning import __version__
from bsq_lightning.files import write_whole
from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.csv_files import csv_files
from bsq_lightning.reports.figures import figure_files
from bsq_lightning.reports.latex import latex
from bsq_lightning.reports.markdown import markdown
from bsq_lightning.reports.page import page
from bsq_lightning.reports.page_data import page_data


def write_report(collection: Collection, out: Path) -> Path:
    """Writes all files into ``out`` and returns the path of the page.

    Raises:
        ModuleNotFoundError: plotly or matplotlib is not installed; the message says how to install them.
        PermissionError: ``out`` cannot be written.
    """
    data = page_data(collection)
    images: dict[str, bytes] = {}
    figures: dict[tuple[str, str], list[str]] = {}
    for key, group in zip(collection.groups, data["groups"], strict=True):
        suffix = "" if len(data["groups"]) == 1 else "-" + re.sub(r"[^a-z0-9]+", "-", "-".join(key).lower()).strip("-")
        if f"front{suffix}.png" in images:
            suffix += f"-{len(figures)}"
        drawn = figure_files(group, data["runs"])
        made = {f"{Path(name).stem}{suffix}{Path(name).suffix}": content for name, content in drawn.items()}
        figures[key] = [name for name in made if name.endswith(".png")]
        images |= made
    tables = csv_files(collection)
    texts = {"report.md": markdown(collection, figures), "settings.tex": latex(collection), **tables}
    texts["index.html"] = page(collection, data, [*texts, *images], __version__)
    try:
        for name, content in {**images, **texts}.items():
            write_whole(out / name, content)
    except OSError as error:
        raise PermissionError(f"the report cannot be written to {out} ({error.strerror}): choose out=FOLDER") from error
    return out / "index.html"
