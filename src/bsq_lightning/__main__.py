"""``python -m bsq_lightning``: the commands, one line each."""

import ast
import importlib.util
import sys
from pathlib import Path

from bsq_lightning import __version__

COMMANDS = (
    "train",
    "evaluate",
    "search",
    "sweep",
    "report",
    "allocate",
    "ptq",
    "card",
    "slices",
    "accelerator",
    "export",
    "verify",
)


def summary(command: str) -> str:
    """The first line of a command's docstring, which is not imported for it."""
    spec = importlib.util.find_spec(f"bsq_lightning.{command}")
    assert spec is not None and spec.origin is not None
    text = ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("``", "")


def main() -> None:
    """Console entry point."""
    if "--version" in sys.argv[1:]:
        print(f"bsq_lightning {__version__}")
        return
    print(f"bsq_lightning {__version__}: a float network goes in, a mixed-precision one comes out\n")
    for command in COMMANDS:
        print(f"  {summary(command)}")
    print("\nEach has --help. Installed, they are also called bsq-train, bsq-evaluate and so on.")
    if sys.argv[1:] and not {"-h", "--help"} & set(sys.argv[1:]):
        sys.exit(f"error: there is nothing to do for {' '.join(sys.argv[1:])}: start one of the commands above")


if __name__ == "__main__":
    main()
