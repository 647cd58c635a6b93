"""What to type after a sweep."""

import shlex
import sys
from pathlib import Path

from bsq_lightning.cli.sweep.status import point_states
from bsq_lightning.run_folder import SweepFolder


def command_to_go_on(sweep: SweepFolder) -> str:
    """This process's own command, in the same folder: it repeats nothing that is done."""
    arguments, started = sys.argv[1:], Path(sys.argv[0]).stem
    command = next((name for name in ("ptq", "search") if started.endswith(name)), "train")
    key = "hydra.run.dir" if command == "search" else "hydra.sweep.dir"
    if not any(argument.startswith(f"{key}=") for argument in arguments):
        path = str(sweep.path).replace("\\", "\\\\").replace("'", "\\'")
        arguments = [*arguments, f"{key}='{path}'" if set("=, '()") & set(path) else f"{key}={path}"]
    return shlex.join(["python", "-m", f"bsq_lightning.{command}", *arguments])


def next_steps(sweep: SweepFolder) -> dict[str, str]:
    """Commands by what they do, as far as there is something for them to do."""
    states, folder = set(point_states(sweep).values()), shlex.quote(str(sweep.path))
    steps = {}
    if states & {"failed", "unfinished", "missing"}:
        steps["go on"] = command_to_go_on(sweep)
    if states - {"done"}:
        steps["status"] = f"python -m bsq_lightning.sweep status {folder}"
    if "done" in states:
        steps["report"] = f"python -m bsq_lightning.report {folder}"
    if any(link.resolve().name.startswith("offline-run-") for link in sweep.path.rglob("wandb/latest-run")):
        # The newest part of a resumed run holds its past as well.
        steps["upload to W&B"] = (
            f"find {folder} -path '*/wandb/latest-run' -exec readlink -f {{}} + | grep /offline-run- | "
            "xargs -n 1 wandb sync"
        )
    return steps


def print_next(sweep: SweepFolder) -> None:
    """One line for each of the steps, whole: to be copied."""
    for what, command in next_steps(sweep).items():
        print(f"{what}: {command}")
