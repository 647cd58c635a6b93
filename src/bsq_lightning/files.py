"""Files that are whole or absent, and line logs that can be cut back to a checkpoint (standard library only)."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes beside the target, flushes to disk and renames: a reader or a crash sees the old file or the new one.

    Raises:
        OSError: the file cannot be written (a full disk); the message names it, and the old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; what was there before is whole", str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def append_line(path: str | Path, line: str) -> None:
    """Appends one line."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(line + "\n")


def cut_lines(path: str | Path, keep: Callable[[str], bool]) -> None:
    """Keeps the lines for which ``keep`` holds; a last line without an end (a crash mid-write) always goes."""
    path = Path(path)
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if line.endswith("\n") and keep(line.rstrip("\n"))]
    if kept != lines:
        write_whole(path, "".join(kept))


def whole_lines(path: str | Path) -> list[str]:
    """The lines of a log, without a last one that has no end (a crash mid-write); none where there is no file."""
    path = Path(path)
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]


def read_json(path: str | Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a JSON object; the message names the file.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file") from error
    except RecursionError as error:
        raise ValueError(f"{path} is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not whole JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object")
    return content
