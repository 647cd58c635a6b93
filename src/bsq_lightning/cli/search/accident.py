"""Trainings that ended by something else than their network, which must not steer a search."""

from bsq_lightning.module import NonFiniteLossError
from bsq_lightning.run_folder import InUseError, RunFolder


class AccidentError(ValueError):
    """A training did not end, for a reason that says nothing of its network.

    Args:
        message: what happened.
        exit_status: of the search, which ends by it: 75, "try again later", where nothing has to be mended first.
    """

    def __init__(self, message: str, exit_status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def accident_of(folder: RunFolder) -> AccidentError | None:
    """What befell a training that did not succeed; None where its own network is to blame, whose loss broke down.

    Only what is known to come from the network may turn the knob: a signal, a lack of memory or disk, another process
    in the folder, missing images or a fault of the program would all look like "this value is too high".
    """
    error = folder.error() or {}
    if error.get("type") == NonFiniteLossError.__name__:
        return None
    state, name = folder.state, folder.path.name
    if state == "running":
        return AccidentError(f"{name} is being trained by another process: wait for its end", InUseError.exit_status)
    if state == "failed":
        return AccidentError(f"{name} failed, not by its network, so the search learns nothing: {error.get('message')}")
    return AccidentError(f"{name} was stopped from outside and goes on where it was", InUseError.exit_status)
