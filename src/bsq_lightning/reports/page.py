"""The page: one HTML file with its figures' data, its style and the plotting library inside; it fetches nothing."""

import json
import shlex
import time
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

from bsq_lightning.reports import words
from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.front import float_accuracy, lines, row_above_line
from bsq_lightning.reports.runs import Run
from bsq_lightning.reports.table import Row


def page(collection: Collection, data: dict[str, Any], downloads: list[str], version: str = "") -> str:
    """The whole page; ``data`` is what its figures are drawn from, ``downloads`` are the files beside it.

    Raises:
        ModuleNotFoundError: plotly is not installed; the message says how to install it.
    """
    try:
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("reports draw with plotly: pip install 'bsq_lightning[report]'") from error
    places = {id(run): i for i, run in enumerate(collection.runs)}
    parts = {
        "TITLE": escape(words.title(collection)),
        "STYLE": _resource("page.css"),
        "HEADER": _header(collection, downloads),
        "GROUPS": "".join(_group(i, key, table, places) for i, (key, table) in enumerate(collection.tables.items())),
        "TROUBLE": _trouble(collection, places),
        "FOOTER": f"bsq_lightning {escape(version)}, written {time.strftime('%Y-%m-%d %H:%M')}",
        "DATA": embedded(data),
        "PLOTLY": get_plotlyjs(),
        "SCRIPT": _resource("page.js"),
    }
    before, *rest = _resource("page.html").split("{{")
    return before + "".join(parts[name] + text for name, text in (piece.split("}}", 1) for piece in rest))


def embedded(data: Any) -> str:
    """JSON that is safe inside a script element.

    Example:
        >>> embedded({"name": "</script>"})
        '{"name":"\\\\u003c/script>"}'
    """
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _resource(name: str) -> str:
    return (files("bsq_lightning.reports") / name).read_text(encoding="utf-8")


def _switch(key: str, choices: dict[str, str]) -> str:
    """Buttons of which one is on, at first the first."""
    on = next(iter(choices))
    return f"<span class=switch data-key={key}>" + "".join(
        f"<button value={value}{' class=on' if value == on else ''}>{text}</button>" for value, text in choices.items()
    ) + "</span>"  # fmt: skip


def _header(collection: Collection, downloads: list[str]) -> str:
    counts = collection.counts
    chips = "".join(f'<span class="chip {state}"><b>{n}</b> {state}</span>' for state, n in counts.items())
    trouble = [state for state in ("failed", "unfinished", "missing", "unreadable") if state in counts]
    link = ' <a href="#trouble">what is wrong</a>' if trouble else ""
    files_ = "".join(f'<a href="{escape(name)}">{escape(name)}</a>' for name in downloads)
    here = Path.cwd()
    shown = [folder.relative_to(here) if folder.is_relative_to(here) else folder for folder in collection.folders]
    folders = ", ".join(f"<code>{escape(str(folder))}</code>" for folder in shown)
    when = words.finished(collection)
    return (
        f"<h1>{escape(words.title(collection))}</h1><p class=chips>{chips}{link}</p>"
        f"<p class=quiet>{folders}{escape(', ' + when if when else '')}</p><nav class=files>{files_}</nav>"
    )


def _group(number: int, key: tuple[str, str], table: list[Row], places: dict[int, int]) -> str:
    runs = [run for row in table for run in row.runs]
    note = words.val_note({run.val for run in runs})
    return f"""
<section class=group data-group={number}>
<h2>Accuracy against size <small>{escape(key[0])} on {escape(key[1])}, {words.plural(len(runs), "run")}</small></h2>
{_verdict(table)}
<figure class=front><div class=switches>
{_switch("counting", {"paper": "paper's counting", "signed": "with sign bit", "model": "whole model"})}
{_switch("axis", {"c": "compression", "kB": "kB", "bits": "bits per weight", "gb": "bit operations"})}
<label><input type=checkbox data-key=paths> paths of the adjustments</label>
<label><input type=checkbox data-key=published checked> published points</label>
</div><div class=plot data-figure=front></div>
<figcaption></figcaption></figure>
<h3>Settings</h3>
{_settings(table, places)}
<p class=quiet>{words.SPREAD} “Above the lines” is test accuracy minus that of the highest line to beat at equal size in
the paper's counting, where its runs enclose it. {escape(note)}</p>
<details><summary>Every run ({len(runs)})</summary>{_every_run(table, places)}</details>{_cards(runs)}
<h3>Bits per layer</h3>
<figure><div class=plot data-figure=layers></div><figcaption></figcaption></figure>
</section>"""


def _verdict(table: list[Row]) -> str:
    """Where the settings lie against the uniform line, in words; empty if there is nothing to compare."""
    compared = [(above, row) for row in table if (above := row_above_line(table, row)) is not None]
    if not compared:
        return ""
    (above, line), row = max(compared, key=lambda pair: pair[0].difference)
    accuracy, size = row.test_accuracy, words.spread(row.compression("paper"))
    assert accuracy is not None
    side = "above" if above >= 0 else "below"
    if accuracy.std is None:
        doubt = " One seed, so there is no spread to compare it with."
    else:
        doubt = "" if abs(above) > accuracy.std else " That is within the spread of its seeds."
    higher = sum(each.difference > 0 for each, _ in compared)
    lines_ = list(lines(table, "paper"))
    bar = f"the {lines_[0]} line" if len(lines_) == 1 else f"the lines of {' and '.join(lines_)}"
    among = (
        f"{higher} of {len(compared)} settings lie above {bar} at equal size. The highest"
        if len(compared) > 1
        else f"Against {bar} at equal size"
    )
    among = escape(among)
    told = (
        f"{among}: <b>{escape(row.label)}</b>, {words.spread(accuracy, 100)} % at {size} ×, "
        f"<b>{abs(100 * above):.2f} points {side}</b> {escape(line)}.{doubt}"
    )
    return (
        f"<p class=verdict>{told.replace(' ± ', '&nbsp;±&nbsp;').replace(' ×', '&nbsp;×').replace(' %', '&nbsp;%')}</p>"
    )


def _settings(table: list[Row], places: dict[int, int]) -> str:
    head = (
        "setting", "act bits", "seeds done", "test accuracy, %", "val accuracy, %", "bits per weight", "paper's ×",
        "with sign ×", "whole model ×", "GBOPs", "above the lines", "time",
    )  # fmt: skip
    body: list[list[tuple[str, Any]]] = []
    known = float_accuracy(table)
    if known is not None and not any(row.setting.method == "float" for row in table):
        told = [("float, before it was quantized", "float"), ("float", 0), ("", None)]
        of_float = [("–", None), ("32", 32), *[("1", 1)] * 3, *[("", None)] * 3]
        body.append([*told, (words.spread(known, 100), known.mean), *of_float])
    for row in table:
        sizes = [row.compression(counting) for counting in ("paper", "signed", "model")]
        above = row_above_line(table, row)
        cells = [
            (_run_link(row.label, places[id(row.runs[0])]), row.label),
            (_act(row.setting.act_precision), row.setting.act_precision),
            (words.seeds(row), len(row.done)),
            *[(words.spread(a, 100), a and a.mean) for a in (row.test_accuracy, row.val_accuracy)],
            (words.spread(row.mean_precision), row.mean_precision and row.mean_precision.mean),
            *[(words.spread(size), size and size.mean) for size in sizes],
            (words.spread(row.gbops), row.gbops and row.gbops.mean),
            (escape(words.above(above)), above and above.difference),
            (words.duration(row.seconds.mean if row.seconds else None), row.seconds and row.seconds.mean),
        ]
        body.append(cells)
    return _table(head, body)


def _every_run(table: list[Row], places: dict[int, int]) -> str:
    head = ("run", "setting", "seed", "state", "test accuracy, %", "val accuracy, %", "paper's ×", "validation images")
    body = []
    for row in table:
        for run in row.runs:
            size = run.sizes.get("paper", {}).get("compression") if row.setting.method != "float" else None
            seed = run.setting.seed if run.setting else None
            body.append([
                (_run_link(run.name, places[id(run)]), run.name),
                (escape(row.label), row.label),
                ("–" if seed is None else str(seed), seed),
                (f'<span class="chip {run.state}">{run.state}</span>', run.state),
                *[("–" if a is None else f"{100 * a:.2f}", a) for a in (run.test_accuracy, run.val_accuracy)],
                ("–" if size is None else f"{size:.2f}", size),
                (escape(run.val.replace("_", " ")), run.val),
            ])  # fmt: skip
    return _table(head, body)


def _cards(runs: list[Run]) -> str:
    """The quantization cards of the runs that have one, folded away."""
    cards = [
        f"<details><summary>{escape(run.name)}</summary><pre>{escape(run.card)}</pre></details>"
        for run in runs
        if run.card
    ]
    return f"<details><summary>Quantization cards ({len(cards)})</summary>{''.join(cards)}</details>" if cards else ""


def _table(head: tuple[str, ...], body: list[list[tuple[str, Any]]]) -> str:
    """Cells are (HTML, value to sort by)."""
    columns = "".join(f"<th><button>{escape(name)}</button></th>" for name in head)
    lines = "".join(
        "<tr>"
        + "".join(f'<td data-v="{"" if v is None else escape(str(v))}">{html}</td>' for html, v in cells)
        + "</tr>"
        for cells in body
    )
    return (
        f"<div class=scroll><table class=sortable><thead><tr>{columns}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _run_link(text: str, place: int) -> str:
    return f'<a href="#run" data-run={place}>{escape(text)}</a>'


def _act(bits: int | None) -> str:
    return "–" if bits is None else "float" if bits in (0, 32) else str(bits)


def _trouble(collection: Collection, places: dict[int, int]) -> str:
    """What failed, what stopped, what is missing, what could not be read, and what looks odd."""
    failed = [run for run in collection.runs if run.state == "failed"]
    stopped = [run for run in collection.runs if run.state in ("unfinished", "running")]
    parts = [_list("What failed", "failed", [_failure(run, places) for run in failed])]
    parts.append(_list("Unfinished", "unfinished", [_stopped(run, places) for run in stopped]))
    missing = [
        f"<b>{escape(each.name)}</b> was asked for and has no run folder: "
        f"<code>{escape(' '.join(each.overrides))}</code>"
        for each in collection.missing
    ]
    parts.append(_list("Missing points", "missing", missing))
    unread = [f"<code>{escape(str(each.path))}</code>: {escape(each.reason)}" for each in collection.unread]
    parts.append(_list("What could not be read", "unreadable", unread))
    odd = [
        f"<b>{_run_link(run.name, places[id(run)])}</b>: {escape('; '.join([*run.problems, *run.warnings]))}"
        for run in collection.runs
        if (run.problems or run.warnings)
    ]
    parts.append(_list("Worth a look", "odd", odd))
    found = "".join(parts)
    return f"<section id=trouble>{found}</section>" if found else ""


def _list(title: str, kind: str, items: list[str]) -> str:
    if not items:
        return ""
    lines = "".join(f"<li>{item}</li>" for item in items[:8])
    if items[8:]:
        rest = "".join(f"<li>{item}</li>" for item in items[8:])
        lines += f"<li><details><summary>{len(items) - 8} more</summary><ul>{rest}</ul></details></li>"
    return f"<h2>{title} <small>{len(items)}</small></h2><ul class='list {kind}'>{lines}</ul>"


def _failure(run: Run, places: dict[int, int]) -> str:
    error = run.error or {}
    told = f"{error.get('type', 'Error')}: {error.get('message', 'no reason was recorded')}"
    trace = str(error.get("traceback") or "")
    fold = f"<details><summary>traceback</summary><pre>{escape(trace)}</pre></details>" if trace else ""
    where = (
        f" <span class=quiet>{escape(str(error.get('time', ''))[:16])} on {escape(str(error.get('host', '?')))}</span>"
    )
    return f"<b>{_run_link(run.name, places[id(run)])}</b>{where}<br>{escape(told)}<br>{_continue(run)}{fold}"


def _stopped(run: Run, places: dict[int, int]) -> str:
    epochs = len(run.metrics.get("stage", []))
    asked = sum(run.setting.epochs.values()) if run.setting else 0
    stage = f", the last of stage {run.metrics['stage'][-1]}" if epochs else ""
    told = f"{run.state}: {epochs} of {asked} epochs recorded{stage}"
    go_on = "" if run.state == "running" else f"<br>{_continue(run)}"
    return f"<b>{_run_link(run.name, places[id(run)])}</b> {escape(told)}{go_on}"


def _continue(run: Run) -> str:
    if not (run.path / "config.yaml").exists():
        return "<span class=quiet>It has no config.yaml, so it cannot be resumed: start it again.</span>"
    return f"<code>python -m bsq_lightning.train resume={escape(shlex.quote(str(run.path)))}</code>"
