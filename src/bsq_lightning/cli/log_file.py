"""The file of a run's log, which Hydra opens before anything of ours has looked at the folder."""

import logging
from io import TextIOWrapper

from bsq_lightning.files import open_to_append


class LogFile(logging.FileHandler):
    """Appends to an ordinary file; a link in its place is not followed."""

    def _open(self) -> TextIOWrapper:
        return open(open_to_append(self.baseFilename), "a", encoding=self.encoding or "utf-8", errors=self.errors)
