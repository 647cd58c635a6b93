"""``python -m bsq_lightning.sweep status FOLDER``: which points of a sweep are done, running, failed or missing."""

import argparse
import sys
from pathlib import Path

from bsq_lightning import __version__
from bsq_lightning.cli.sweep.status import print_status
from bsq_lightning.run_folder import SweepFolder


def main() -> None:
    """Console entry point."""
    parser = argparse.ArgumentParser(prog="python -m bsq_lightning.sweep", description=__doc__)
    parser.add_argument("--version", action="version", version=f"bsq_lightning {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    status = commands.add_parser(
        "status",
        help="from the run folders alone, also while the sweep runs; exit status 1 where a point failed",
    )
    status.add_argument("folder", type=Path, help="folder of the sweep (its hydra.sweep.dir)")
    arguments = parser.parse_args()
    try:
        fine = print_status(SweepFolder(arguments.folder.expanduser().resolve()))
    except (FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    sys.exit(0 if fine else 1)


if __name__ == "__main__":
    main()
