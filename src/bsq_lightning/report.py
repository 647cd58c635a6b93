"""``python -m bsq_lightning.report runs=FOLDER``: what the runs below a folder found.

A page that needs nothing from outside, Markdown, CSV and PNG.
"""

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


def main() -> None:
    """Console entry point."""
    run_command(report, "report")


if __name__ == "__main__":
    main()
