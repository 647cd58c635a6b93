"""Reports read run folders, never a network: tables, figures and a page that needs nothing from outside."""

from bsq_lightning.reports.collection import Collection, Missing, Unread, collect
from bsq_lightning.reports.runs import Run, read_run
from bsq_lightning.reports.terminal import settings_table
from bsq_lightning.reports.write import write_report

__all__ = ["Collection", "Missing", "Run", "Unread", "collect", "read_run", "settings_table", "write_report"]
