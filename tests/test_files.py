from pathlib import Path

import pytest

from bsq_lightning.files import append_line, cut_lines, read_json, whole_lines, write_whole


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_whole(path, "old")

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        write_whole(path, "new" * 1000)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_cut_drops_half_lines_and_what_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for i in range(4):
        append_line(path, str(i))
    with open(path, "a") as file:
        file.write("half")
    cut_lines(path, lambda line: int(line) < 2)
    assert path.read_text() == "0\n1\n"
    cut_lines(tmp_path / "absent", lambda line: True)


def test_whole_lines_leave_half_a_line_out(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a\nb\nhal")
    assert whole_lines(tmp_path / "log") == ["a", "b"]
    assert whole_lines(tmp_path / "absent") == []


def test_read_json_names_the_file(tmp_path: Path) -> None:
    for content in (b"{", b"[1]", b"\xff\xfe"):
        (tmp_path / "x.json").write_bytes(content)
        with pytest.raises(ValueError, match="x.json"):
            read_json(tmp_path / "x.json")
