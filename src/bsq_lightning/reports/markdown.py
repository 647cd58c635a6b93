"""The report as Markdown, with the figures beside it."""

import re
import shlex

from bsq_lightning.reports import words
from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.front import float_accuracy, row_above_line
from bsq_lightning.reports.published import published_points
from bsq_lightning.reports.runs import COUNTINGS, Run
from bsq_lightning.reports.table import Row


def markdown(collection: Collection, figures: dict[tuple[str, str], list[str]]) -> str:
    """The whole text; ``figures`` are the image files of each group."""
    parts = [f"# {_plain(words.title(collection))}", ""]
    parts += [f"{words.counted(collection.counts)}. {_plain(words.finished(collection).capitalize())}".strip(), ""]
    for key, table in collection.tables.items():
        runs = collection.groups[key]
        parts += [f"## {_plain(key[0])} on {_plain(key[1])}", ""]
        parts += [f"![{name.rsplit('.', 1)[0]}]({name})\n" for name in figures.get(key, [])]
        parts += [*_settings(table), "", words.val_note({run.val for run in runs}), ""]
        parts += [*_published(key, runs)]
    parts += _trouble(collection)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(parts)).strip() + "\n"


def _settings(table: list[Row]) -> list[str]:
    head = ["setting", "seeds", "test accuracy, %", "bits", "paper's ×", "with sign ×", "whole model ×", "GBOPs",
            "above the lines"]  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    known = float_accuracy(table)
    if known is not None:
        lines.append(f"| float | | {words.spread(known, 100)} | 32 | 1 | 1 | 1 | | |")
    for row in (row for row in table if row.setting.method != "float"):
        sizes = [words.spread(row.compression(counting)) for counting in COUNTINGS]
        accuracy, bits = words.spread(row.test_accuracy, 100), words.spread(row.mean_precision)
        above = words.above(row_above_line(table, row))
        cells = [_plain(row.label), words.seeds(row), accuracy, bits, *sizes, words.spread(row.gbops), _plain(above)]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, "", words.SPREAD]


def _published(key: tuple[str, str], runs: list[Run]) -> list[str]:
    acts = {run.setting.act_precision for run in runs if run.setting and run.setting.act_precision is not None}
    points = published_points(*key, acts)
    if not points:
        return []
    lines = [
        "Published, not measured here, in the paper's counting:",
        "",
        "| point | × | accuracy, % | where from |",
        "|---|---|---|---|",
    ]
    return [*lines, *(f"| {p.name} | {p.compression:.2f} | {p.accuracy:.2f} | {p.provenance} |" for p in points), ""]


def _trouble(collection: Collection) -> list[str]:
    parts: list[str] = []
    for run in collection.runs:
        if run.state == "failed":
            error = run.error or {}
            told = _plain(f"{error.get('type')}: {error.get('message')}")
            command = _code(f"python -m bsq_lightning.train resume={shlex.quote(str(run.path))}")
            parts.append(f"- **{_plain(run.name)}** failed: {told}. Continue: {command}")
        elif run.state != "done":
            epochs = words.plural(len(run.metrics.get("stage", [])), "epoch")
            parts.append(f"- **{_plain(run.name)}** is {run.state}, {epochs} recorded")
        if run.problems or run.warnings:
            parts.append(f"- **{_plain(run.name)}**: {_plain('; '.join([*run.problems, *run.warnings]))}")
    parts += [f"- **{_plain(each.name)}** is missing: asked for, no run folder" for each in collection.missing]
    parts += [f"- {_code(str(each.path))} could not be read: {_plain(each.reason)}" for each in collection.unread]
    return ["## What failed, is missing, or is worth a look", "", *parts] if parts else []


def _code(text: str) -> str:
    """Text as code, within more backticks than it has in a row itself."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if len(fence) > 1 else ""
    return f"{fence}{space}{' '.join(text.split())}{space}{fence}"


def _plain(text: str) -> str:
    """Names and messages as text: no HTML, no table cells, one line."""
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(text.split())).replace("\\_", "_")
