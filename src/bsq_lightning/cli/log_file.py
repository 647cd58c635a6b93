"""The file of a run's log, which Hydra opens before anything of ours has looked at the folder."""

import logging
import sys
from io import TextIOWrapper

from bsq_lightning.files import open_to_append


class LogFile(logging.FileHandler):
    """Appends to an ordinary file; a link in its place is not followed. A disk that is full is said once: what the file
    then lacks is on the terminal."""

    _told = False

    def _open(self) -> TextIOWrapper:
        return open(open_to_append(self.baseFilename), "a", encoding=self.encoding or "utf-8", errors=self.errors)

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f"{self.baseFilename} cannot be written ({error.strerror})", file=sys.stderr)
