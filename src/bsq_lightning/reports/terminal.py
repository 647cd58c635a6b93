"""The short table that the command prints."""

from rich.markup import escape
from rich.table import Table

from bsq_lightning.reports import words
from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.front import float_accuracy, row_above_line


def settings_table(collection: Collection, most: int = 20) -> list[Table]:
    """One table for each group, of at most ``most`` settings; the title counts the runs by state."""
    tables = []
    for (model, data), lines in collection.tables.items():
        table = Table(
            title=escape(f"{model} on {data}: {words.plural(sum(len(row.runs) for row in lines), 'run')}"),
            title_justify="left",
        )
        for name in ("setting", "seeds", "test, %", "paper's x", "with sign x", "above the lines"):
            table.add_column(name, justify="left" if name == "setting" else "right")
        known = float_accuracy(lines)
        if known is not None:
            table.add_row("float", "", words.spread(known, 100), "1", "1", "")
        lines = [row for row in lines if row.setting.method != "float"]
        for row in lines[:most]:
            sizes = [words.spread(row.compression(counting)) for counting in ("paper", "signed")]
            above = escape(words.above(row_above_line(lines, row)))
            table.add_row(escape(row.label), words.seeds(row), words.spread(row.test_accuracy, 100), *sizes, above)
        if lines[most:]:
            table.add_row(f"... {len(lines) - most} more on the page", *[""] * 5)
        table.caption, table.caption_justify = words.counted(collection.counts), "left"
        tables.append(table)
    return tables
