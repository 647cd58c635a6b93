"""The table of settings for a paper, in LaTeX with booktabs."""

from bsq_lightning.reports import words
from bsq_lightning.reports.collection import Collection
from bsq_lightning.reports.front import float_accuracy, row_above_line
from bsq_lightning.reports.runs import COUNTINGS

_SPECIAL = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
    "±": r"$\pm$", "×": r"$\times$", "−": "$-$", "–": "--",
}  # fmt: skip


def latex(collection: Collection) -> str:
    """One ``table`` for each group, to be read with ``\\input``; it needs ``\\usepackage{booktabs}``."""
    return "\n".join(_table(collection, key) for key in collection.tables)


def escaped(text: str) -> str:
    """Text in which nothing is a command.

    Example:
        >>> escaped("50% of a_b \\\\input")
        '50\\\\% of a\\\\_b \\\\textbackslash{}input'
    """
    return "".join(_SPECIAL.get(letter, letter) for letter in " ".join(text.split()))


def _table(collection: Collection, key: tuple[str, str]) -> str:
    table = collection.tables[key]
    head = ["setting", "seeds", "test accuracy, %", "bits", "paper's ×", "with sign ×", "whole model ×", "GBOPs",
            "above the lines"]  # fmt: skip
    body = []
    known = float_accuracy(table)
    if known is not None:
        body.append(["float", "", words.spread(known, 100), "32", "1", "1", "1", "", ""])
    for row in table:
        if row.setting.method == "float":
            continue
        sizes = [words.spread(row.compression(counting)) for counting in COUNTINGS]
        above = row_above_line(table, row)
        body.append([
            row.label, words.seeds(row), words.spread(row.test_accuracy, 100), words.spread(row.mean_precision), *sizes,
            words.spread(row.gbops), words.above(above),
        ])  # fmt: skip
    lines = [" & ".join(map(escaped, cells)) + r" \\" for cells in (head, *body)]
    caption = escaped(f"{key[0]} on {key[1]}. {words.SPREAD}")
    return "\n".join([
        r"\begin{table}", r"\centering", rf"\caption{{{caption}}}", r"\begin{tabular}{lrrrrrrrr}", r"\toprule",
        lines[0],
        r"\midrule", *lines[1:], r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip
