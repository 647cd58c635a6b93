"""``python -m bsq_lightning.report FOLDER``: what the runs below a folder found.

A page that needs nothing from outside, Markdown, CSV and PNG.
"""

import os
import sys

from omegaconf import DictConfig

from bsq_lightning.cli.config import plain_errors, run_command


@plain_errors
def report(cfg: DictConfig) -> None:
    """Reads run folders, never a network, and writes the report beside them."""
    from pathlib import Path

    from rich.console import Console

    from bsq_lightning.cli.settings import check_values
    from bsq_lightning.cli.settings.groups import Report
    from bsq_lightning.reports import collect, settings_table, write_report

    check_values(cfg, Report)
    folders = [Path(folder) for folder in ([cfg.runs] if isinstance(cfg.runs, str) else cfg.runs)]
    collection = collect(folders)
    try:
        page = write_report(collection, Path(cfg.out or folders[0] / "report").expanduser().resolve())
    except ModuleNotFoundError as error:  # plotly or matplotlib; the message says what to install
        raise ValueError(str(error)) from error
    console = Console(width=None if Console().is_terminal else 120)
    for table in settings_table(collection):
        console.print(table)
    for unread in collection.unread:
        console.print(f"could not be read: {unread.path}: {unread.reason}", soft_wrap=True, markup=False)
    console.print(f"report: {page}", soft_wrap=True, markup=False)


def folders_first(arguments: list[str]) -> list[str]:
    """Folders at the front of a command line, as Hydra has them.

    Example:
        >>> folders_first(["a", "b/c", "out=d"]), folders_first(["--help"])
        (["runs=['a','b/c']", 'out=d'], ['--help'])
    """
    count = 0
    while count < len(arguments) and (os.path.isdir(arguments[count]) or arguments[count][0] not in "-+~"):
        if "=" in arguments[count] and not os.path.isdir(arguments[count]):
            break
        count += 1
    escaped = [folder.replace("\\", "\\\\").replace("'", "\\'") for folder in arguments[:count]]
    named = ",".join(f"'{folder}'" for folder in escaped)
    return [f"runs=[{named}]", *arguments[count:]] if count else arguments


def main() -> None:
    """Console entry point."""
    sys.argv[1:] = folders_first(sys.argv[1:])
    run_command(report, "report")


if __name__ == "__main__":
    main()
