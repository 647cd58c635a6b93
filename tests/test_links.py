"""Links in a run folder: nothing is written through one, whoever laid it."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bsq_lightning import train
from bsq_lightning.checkpoint_io import AtomicCheckpointIO
from bsq_lightning.cli.log_file import LogFile
from bsq_lightning.cli.run.resume import resume_arguments
from bsq_lightning.files import append_line, check_inside, copy_whole, cut_lines, remove_leftovers, write_whole
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY

BEFORE = "somebody's own\n"


def log_line(path: Path) -> None:
    LogFile(str(path)).close()


def checkpoint(path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"a": 1}, path)


def locked(path: Path) -> None:
    with RunFolder(path.parent).running():
        pass


#: What writes into a run folder: to the name of its file.
WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "write_whole": ("scheme.json", lambda path: write_whole(path, "ours")),
    "append_line": ("metrics.csv", lambda path: append_line(path, "ours")),
    "cut_lines": ("metrics.csv", lambda path: cut_lines(path, lambda line: False)),
    "copy_whole": ("float.ckpt", lambda path: copy_whole(__file__, path)),
    "copy_whole, link": ("float.ckpt", lambda path: copy_whole(__file__, path, link=True)),
    "log": ("train.log", log_line),
    "checkpoint": ("last.ckpt", checkpoint),
    "error": ("error.json", lambda path: RunFolder(path.parent).record_error("x")),
    "lock": (".running.lock", locked),
    "state": (".running.lock", lambda path: RunFolder(path.parent).state),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_follows_a_link(writer: str, tmp_path: Path) -> None:
    name, write = WRITERS[writer]
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.write_text(BEFORE)
    folder.mkdir()
    (folder / name).symlink_to(outside)
    try:
        write(folder / name)
    except (OSError, ValueError) as refused:
        assert name in str(refused)
    assert outside.read_text() == BEFORE


@pytest.mark.parametrize("write", [append_line, lambda path, _: log_line(path)], ids=["append_line", "log"])
@pytest.mark.parametrize("kind", ["dangling link", "pipe", "folder"])
def test_no_line_is_appended_to_what_is_no_file(kind: str, write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "made by us")
    with pytest.raises(OSError, match="metrics.csv"):
        write(path, "line")
    assert not (tmp_path / "made by us").exists()


def test_temporary_names_cannot_be_known_and_are_cleaned_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda source, target: (used.append(str(source)), replace(source, target)))
    for _ in range(2):
        write_whole(tmp_path / "a", "x")
        copy_whole(__file__, tmp_path / "b", link=True)
    assert len(set(used)) == 4 and [path.name for path in sorted(tmp_path.iterdir())] == ["a", "b"]
    outside = tmp_path / "outside"
    outside.write_text(BEFORE)
    (tmp_path / ".last.ckpt.0123.tmp").write_text("of a killed process")
    (tmp_path / ".a.tmp").symlink_to(outside)
    remove_leftovers(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "outside"]
    assert outside.read_text() == BEFORE


LINKS = ("metrics.csv", "adjustments.jsonl", "train.log", "checkpoints", ".hydra", "wandb", ".running.lock", "a/b/c")


@pytest.mark.parametrize("name", LINKS)
def test_a_folder_with_a_link_to_the_outside_is_refused(name: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    (folder / name).parent.mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 1\n")
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{name} is a link to .*outside"):
        resume_arguments([f"resume={folder}"])
    with pytest.raises(ValueError, match=f"{name} is a link to .*outside"), RunFolder(folder).running():
        pass
    assert not list(outside.iterdir())


def test_links_that_stay_inside_and_those_of_wandb_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "run" / "wandb" / "run-1" / "logs").mkdir(parents=True)
    (tmp_path / "run" / "wandb" / "run-1" / "logs" / "debug-core.log").symlink_to(tmp_path / "cache.log")
    (tmp_path / "run" / "newest").symlink_to("wandb")
    check_inside(tmp_path / "run")
    os.mkfifo(tmp_path / "run" / "error.json")
    with pytest.raises(ValueError, match="error.json is neither a file nor a folder"):
        check_inside(tmp_path / "run")


def test_a_new_run_writes_nothing_through_the_links_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "run"
    outside.mkdir()
    folder.mkdir()
    (folder / ".hydra").symlink_to(outside)
    monkeypatch.setattr(sys, "argv", ["train", *TINY, f"hydra.run.dir={folder}", "preflight=only"])
    with pytest.raises(SystemExit, match=r"\.hydra is a link"):
        train.main()
    assert not list(outside.iterdir())
    shutil.rmtree(folder)
