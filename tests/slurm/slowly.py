"""Makes a tiny training last as long as a test needs it to, on any machine, and changes nothing else of it."""

import time
from typing import Any

import lightning as L


class Slowly(L.Callback):
    """Sleeps before every step.

    Args:
        seconds: how long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_start(self, *args: Any) -> None:
        time.sleep(self.seconds)
