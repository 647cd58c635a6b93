"""What is said to people, and where on the terminal."""

import logging
import sys
import threading
from contextlib import nullcontext
from typing import TextIO

_LOCK = threading.RLock()


class Terminal(logging.StreamHandler[TextIO]):
    """Writes to what ``sys.stdout`` is at the time of the message, above the progress bar if there is one.

    A stream that is kept would be written to behind the back of whatever draws at the bottom of the terminal.
    """

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # pyright: ignore[reportIncompatibleVariableOverride]
        return sys.stdout

    def emit(self, record: logging.LogRecord) -> None:
        bars = sys.modules.get("tqdm")  # what was never imported draws nothing
        if bars is not None:
            # tqdm's own lock is shared with the processes that load images: one that is killed while it holds it, to
            # name a broken image, would stop all others for ever. Its thread could hold it while they are forked.
            bars.tqdm.set_lock(_LOCK)
            bars.tqdm.monitor_interval = 0
        with nullcontext() if bars is None else bars.tqdm.external_write_mode(file=sys.stdout):
            super().emit(record)


def span(seconds: float) -> str:
    """A time in words.

    Example:
        >>> span(42), span(600), span(7200)
        ('42 s', '10 min', '2.0 h')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
