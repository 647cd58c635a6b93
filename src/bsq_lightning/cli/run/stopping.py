"""The signals that ask a run to stop, in one place for those who send them and those who wait for its end."""

import signal

#: The signals after which a run saves and ends, by the exit status that it then has.
STOPPED = {128 + number: number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)}
