"""A run folder is read however broken it is, and what is broken is said."""

import json
from pathlib import Path

import pytest

from bsq_lightning.reports import collect, read_run
from tests.reports.folders import write_error, write_many, write_run, write_sweep


def test_a_finished_run_is_its_summary(tmp_path: Path) -> None:
    summary = write_run(tmp_path / "a", alpha=5e-3, seed=3)
    run = read_run(tmp_path / "a")
    assert summary is not None and run.setting is not None
    assert (run.state, run.problems, run.setting.seed, run.setting.alpha) == ("done", [], 3, 5e-3)
    assert run.test_accuracy == summary["accuracy"]["final"]["test/acc"]
    assert run.sizes == summary["sizes"] and run.mean_precision == summary["mean_precision"]
    assert run.sizes_after(run.adjustments[-1]) == summary["sizes"], "the path ends at the scheme"
    assert all(len(column) == 30 for column in run.metrics.values())


def test_sizes_on_the_way_are_those_that_were_stored_where_filters_differ(tmp_path: Path) -> None:
    write_run(tmp_path / "a", alpha=5e-3, seed=3)
    path = tmp_path / "a" / "adjustments.jsonl"
    row = json.loads(path.read_text().splitlines()[-1])
    before = read_run(tmp_path / "a").sizes_after(read_run(tmp_path / "a").adjustments[-1])
    name, layer = next(iter(row["layers"].items()))
    layer |= {"to": 5.375, "stored": [2322, 2700, 512]}
    path.write_text(json.dumps(row) + "\n")
    run = read_run(tmp_path / "a")
    assert run.scheme is not None and run.adjustments[0].after[name] == 5.375
    own = next(each for each in run.scheme.layers if each.name == name)
    after = run.sizes_after(run.adjustments[0])
    assert after["paper"]["bits"] - before["paper"]["bits"] == 2322 - own.bits
    assert after["model"]["bits"] - before["model"]["bits"] == 2700 + 512 - own.signed_bits - own.side_bits


def test_an_unfinished_run_has_its_newest_validation_accuracy(tmp_path: Path) -> None:
    write_run(tmp_path / "a", done=False, stop_after=7)
    run = read_run(tmp_path / "a")
    row = (tmp_path / "a" / "metrics.csv").read_text().splitlines()[-1].split(",")
    assert (run.state, run.test_accuracy, run.val_accuracy) == ("unfinished", None, float(row[8]))


def test_a_cut_last_line_is_left_out_and_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    path = tmp_path / "a" / "metrics.csv"
    whole = path.read_text()
    for cut in (3, 40, len(whole.splitlines()[-1])):  # a number without its last digits looks whole, but is not
        path.write_text(whole[:-cut])
        run = read_run(tmp_path / "a")
        assert len(run.metrics["val/acc"]) == 29
        assert run.problems == ["metrics.csv: 1 broken line left out"]
    path.write_text(whole.replace("finetune,3,", "finetune,3,,,,,\nfinetune,3,", 1) + "nonsense,1,2\n")
    assert read_run(tmp_path / "a").problems == ["metrics.csv: 2 broken lines left out"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("summary.json", "{", "summary.json is not whole JSON"),
        ("summary.json", "{}", "no final test accuracy"),
        ("scheme.json", "[]", "scheme.json is not a scheme"),
        ("metrics.csv", "", "no header"),
        ("adjustments.jsonl", '{"epoch": 1}\n', "adjustments.jsonl: 1 broken line"),
        ("error.json", "\x00", "error.json is not whole JSON"),
    ],
)
def test_a_broken_file_costs_only_itself(tmp_path: Path, name: str, content: str, said: str) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "a" / name).write_text(content)
    run = read_run(tmp_path / "a")
    assert any(said in problem for problem in run.problems), run.problems
    assert run.setting is not None and len(run.problems) <= 2
    if name == "summary.json":
        assert run.state == "unfinished" and run.val_accuracy is not None


@pytest.mark.parametrize("name", ["metrics.csv", "scheme.json"])
def test_a_missing_file_is_said(tmp_path: Path, name: str) -> None:
    write_run(tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    assert [problem for problem in read_run(tmp_path / "a").problems if f"{name} is missing" in problem]


def test_empty_layers_and_still_adjustments_are_warned_of(tmp_path: Path) -> None:
    write_run(tmp_path / "a", alpha=0.3, epochs={"bits": 40}, interval=5)
    warnings = read_run(tmp_path / "a").warnings
    assert any("at 0 bits" in warning for warning in warnings)
    assert any("no layer moved" in warning for warning in warnings)


def test_every_folder_is_counted_and_nothing_is_skipped(tmp_path: Path) -> None:
    write_many(tmp_path, [1e-3, 5e-3], [1, 2], [2])
    write_run(tmp_path / "failed", done=False, stop_after=3)
    write_error(tmp_path / "failed")
    (tmp_path / "early").mkdir()
    write_error(tmp_path / "early", "no data")
    for name, content in (("broken", "a: [1"), ("other", "a: 1"), ("text", "words"), ("binary", "")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(content)
    (tmp_path / "binary" / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "failed" / "wandb" / "files").mkdir(parents=True)
    (tmp_path / "failed" / "wandb" / "files" / "config.yaml").write_text("wandb_version: 1")
    write_sweep(tmp_path, {"failed": ["a=1"], "never": ["reg.alpha=1"]})
    collection = collect([tmp_path])
    assert collection.counts == {"done": 7, "failed": 2, "missing": 1, "unreadable": 4}
    assert {each.path.name for each in collection.unread} == {"broken", "other", "text", "binary"}
    assert [each.name for each in collection.missing] == ["never"]
    assert len(collection.groups) == 1


def test_unsafe_yaml_is_not_executed(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    text = f"!!python/object/apply:os.mkdir ['{tmp_path / 'executed'}']"
    (tmp_path / "a" / "config.yaml").write_text(text)
    with pytest.raises(ValueError, match="cannot be read"):
        read_run(tmp_path / "a")
    assert not (tmp_path / "executed").exists()


def test_nothing_to_report_is_said(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such folder"):
        collect([tmp_path / "absent"])
    with pytest.raises(ValueError, match="empty or holds something else"):
        collect([tmp_path])
    (tmp_path / "file").write_text("")
    with pytest.raises(FileNotFoundError, match="it is a file"):
        collect([tmp_path / "file"])


def test_several_folders_of_which_one_is_missing(tmp_path: Path) -> None:
    write_run(tmp_path / "one" / "a")
    collection = collect([tmp_path / "one", tmp_path / "two", tmp_path / "one"])
    assert [run.name for run in collection.runs] == ["one/a"]
    assert [each.reason for each in collection.unread] == ["there is no such folder"]


def test_a_broken_list_of_points_is_said(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    for content in ("{", json.dumps({"runs": 1}), json.dumps({"points": ["a"]})):
        (tmp_path / "sweep.json").write_text(content)
        (unread,) = collect([tmp_path]).unread
        assert "list of points" in unread.reason


def test_what_rounding_costs_is_read_and_a_broken_file_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, method="uniform", precision=2)
    name = read_run(tmp_path).scheme.layers[0].name  # type: ignore[union-attr]
    layers = {name: 0.25, "unknown": 1.0}
    (tmp_path / "damage.json").write_text(json.dumps({"finetune": {"epoch": 11, "total": 0.25, "layers": layers}}))
    assert read_run(tmp_path).damage == {name: 0.25}
    for broken in ("{", "[1]", '{"finetune": {"layers": {"' + name + '": "much"}}}'):
        (tmp_path / "damage.json").write_text(broken)
        run = read_run(tmp_path)
        assert not run.damage and any("damage.json" in problem for problem in run.problems), broken
