"""``python -m bsq_lightning.verify FILE``: is an exported file whole, and does it compute what its certificate says."""

import argparse
import sys
from pathlib import Path

from bsq_lightning import __version__


def main() -> None:
    """Console entry point."""
    parser = argparse.ArgumentParser(prog="python -m bsq_lightning.verify", description=__doc__)
    parser.add_argument("--version", action="version", version=f"bsq_lightning {__version__}")
    parser.add_argument("file", type=Path, help="a packed file, an ONNX graph or a torch.export program")
    parser.add_argument("--run", help="run folder of the network, to load a packed file into its architecture")
    parser.add_argument("--trusted", action="store_true", help="run a torch.export program, whose maker you know")
    parser.add_argument("--trust", nargs="*", default=[], help="packages of your own that the run's config names")
    arguments = parser.parse_args()
    from bsq_lightning.cli.config import import_from_here
    from bsq_lightning.exporters import verify

    import_from_here()
    net = None
    try:
        if arguments.run:
            from bsq_lightning.cli.run.opening import open_run

            net = open_run(arguments.run, arguments.trust, accelerator="cpu").module.network.net
        found = verify(arguments.file.expanduser(), net, trusted=arguments.trusted)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        sys.exit(f"error: {error}")
    print("\n".join(found.lines()))
    sys.exit(0 if found.passed else 1)


if __name__ == "__main__":
    main()
