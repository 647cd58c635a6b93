"""The signals that ask a run to stop, in one place for those who send them and those who wait for its end."""

import signal
from collections.abc import Iterable

#: The signals after which a run saves and ends, by the exit status that it then has.
STOPPED = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}


def heard(signals: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Those that whoever started this process did not set to be ignored, as ``nohup`` and ``&`` in a script do.

    Example:
        >>> before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        >>> heard([signal.SIGINT, signal.SIGUSR1]) == [signal.SIGUSR1]
        True
        >>> _ = signal.signal(signal.SIGINT, before)
    """
    return [number for number in signals if signal.getsignal(number) is not signal.SIG_IGN]
