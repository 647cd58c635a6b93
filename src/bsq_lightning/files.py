"""Files that are whole or absent, and line logs that can be cut back to a checkpoint (standard library only).

A folder may be somebody else's: nothing here writes through a link, or into a temporary file whose name was known.
"""

import errno
import json
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

#: What the system says of a disk that is full, or of a quota.
FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)  # where the platform has it


def write_whole(path: str | Path, content: str | bytes) -> None:
    """Writes beside the target, flushes to disk and renames: a reader or a crash sees the old file or the new one.

    Raises:
        OSError: the file cannot be written (a full disk); the message names it, and the old file is as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with put_in_place(path) as temporary, open(temporary, "xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror or error}; what was there before is whole", str(path)) from error


def copy_whole(source: str | Path, target: str | Path, link: bool = False) -> None:
    """Copies a file beside the target and renames; with ``link``, two names of one file where the disk can do that."""
    with put_in_place(Path(target)) as temporary:
        if link:
            with suppress(OSError):  # a file system without them
                os.link(source, temporary)
        if not temporary.exists():
            with open(source, "rb") as given, open(temporary, "xb") as file:
                shutil.copyfileobj(given, file)
            shutil.copystat(source, temporary)


@contextmanager
def put_in_place(path: Path) -> Iterator[Path]:
    """A name beside ``path`` that nobody could know; what the block makes of it takes the place of ``path``."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Removes the temporary files that killed processes have left; nothing else may be writing here."""
    for path in folder.glob(".*.tmp"):
        if path.is_symlink() or path.is_file():
            path.unlink(missing_ok=True)


def open_to_append(path: str | Path) -> int:
    """The descriptor of a file to append to, made if it is absent; never one that a link points to.

    Raises:
        OSError: it is a link, or no ordinary file; the message names it.
    """
    try:
        if os.path.islink(path) or (os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode)):
            raise OSError(None, "it is a link or no ordinary file")
        return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | _NO_LINK, 0o666)
    except OSError as error:
        raise OSError(
            error.errno, f"{error.strerror or error}: nothing is written through it, remove it first", str(path)
        ) from error


def append_line(path: str | Path, line: str) -> None:
    """Appends one line."""
    with open(open_to_append(path), "a", encoding="utf-8") as file:
        file.write(line + "\n")


def check_inside(folder: Path) -> None:
    """Refuses a folder in which somebody else has laid links to the outside, or what would block whoever opens it.

    Raises:
        ValueError: a link that leads out of the folder, a pipe, a device or a socket; the message names it.
    """
    root = os.path.realpath(folder)
    for where, folders, names in os.walk(root):
        if os.path.basename(where) == "wandb" and os.path.dirname(where) == root:
            folders.clear()  # it makes new folders for what it writes, and links to its own logs at home
            continue
        for name in (*folders, *names):
            path = os.path.join(where, name)
            mode = os.lstat(path).st_mode
            if stat.S_ISLNK(mode):
                target = os.path.realpath(path)
                if os.path.commonpath((root, target)) != root:
                    raise ValueError(
                        f"{path} is a link to {target}, outside of the run folder: what the run writes would go there. "
                        "Remove the link, or put a file or folder in its place"
                    )
            elif not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise ValueError(f"{path} is neither a file nor a folder: remove it from the run folder")


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
