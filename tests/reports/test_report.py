"""The written report: its figures are those of the run folders, it asks for nothing, and names cannot break it."""

import csv
import itertools
import json
import re
import shutil
import subprocess
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from bsq_lightning.reports import collect, write_report
from bsq_lightning.reports.figures import bits_figure, front_figure
from bsq_lightning.reports.page_data import page_data
from bsq_lightning.reports.runs import COUNTINGS
from tests.cli.commands import run
from tests.reports.folders import write_error, write_many, write_run, write_sweep

NASTY = "a<script>alert(1)<&script>|`x`\"'"


class Page(HTMLParser):
    """Elements with their attributes, and the text of scripts and of everything else."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.inside = False
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.inside = tag == "script"
        self.scripts += [""] if self.inside else []

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data
        else:
            self.text += data

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def report(folder: Path) -> tuple[Path, Page]:
    out = folder.parent / "report"
    index = write_report(collect([folder]), out)
    return out, Page(index.read_text(encoding="utf-8"))


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """Runs of all kinds: done, failed, unfinished, missing, unreadable, with nasty names, in two groups."""
    folder = tmp_path / "runs"
    write_many(folder, [3e-3, 1e-2], [1, 2], [2, 4])
    write_run(folder / NASTY, alpha=7e-3)
    write_run(folder / "stopped", alpha=5e-3, done=False, stop_after=9)
    write_run(folder / "failed", alpha=5e-3, done=False, stop_after=9, seed=2)
    write_error(folder / "failed", "</script><script>alert(2)</script>")
    write_run(folder / "other", config={"model": {"_target_": "bsq_lightning.models.resnet56"}})
    write_run(folder / "empty_layers", alpha=2.0)
    (folder / "junk").mkdir()
    (folder / "junk" / "config.yaml").write_text("a: 1")
    write_sweep(folder, {"never": ["reg.alpha=<b>"]})
    return folder


def test_figures_on_the_page_are_those_of_the_summaries(tmp_path: Path) -> None:
    write_many(tmp_path / "runs", [3e-3, 1e-2], [1, 2], [2])
    out, page = report(tmp_path / "runs")
    points = {each["name"]: each for each in page.data["runs"]}
    table = {line["run"]: line for line in csv.DictReader((out / "runs.csv").open())}
    summaries = {path.parent.relative_to(tmp_path / "runs").as_posix(): path for path in tmp_path.rglob("summary.json")}
    assert set(points) == set(summaries) == set(table)
    for name, path in summaries.items():
        summary = json.loads(path.read_text())
        accuracy = summary["accuracy"]["final"]["test/acc"]
        assert points[name]["test"] == pytest.approx(100 * accuracy, rel=1e-5)
        assert float(table[name]["test_accuracy"]) == accuracy
        for counting, size in summary["sizes"].items():
            assert points[name]["x"] is None or points[name]["x"][counting]["c"] == pytest.approx(
                size["compression"], rel=1e-4
            )
    adjustments = [json.loads(line) for line in (tmp_path / "runs" / "alpha=0.01,seed=2" / "adjustments.jsonl").open()]
    path = points["alpha=0.01,seed=2"]["adjustments"]
    assert path["epoch"] == [row["epoch"] for row in adjustments]
    assert path["layers"]["fc"]["to"] == [row["layers"]["fc"]["to"] for row in adjustments]
    assert len(list(csv.DictReader((out / "adjustments.csv").open()))) == 4 * len(adjustments)


def test_the_page_asks_for_nothing_from_outside(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    out, page = report(tmp_path / "runs")
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "img", "object", "embed")
        assert "src" not in attributes and "srcset" not in attributes and tag != "base"
        href = attributes.get("href") or ""
        assert href.startswith("#") or not href or (out / href).is_file(), href
    style = next(text for text in re.findall(r"<style>(.*?)</style>", (out / "index.html").read_text(), re.S))
    assert "url(" not in style and "@import" not in style
    policy = next(a["content"] for tag, a in page.elements if tag == "meta" and a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'")


def test_the_card_of_a_run_is_shown_as_text(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / str(seed), seed=seed)
    (tmp_path / "2" / "card.md").write_text("| weights.sign | <b>beside</b> |")
    _, page = report(tmp_path)
    assert "Quantization cards (1)" in page.text and "weights.sign | <b>beside</b> |" in page.text


def test_names_and_messages_stay_text(troubled: Path) -> None:
    out, page = report(troubled)
    assert len(page.scripts) == 3 and "alert(1)" not in page.scripts[1] + page.scripts[2]
    assert any(each["name"] == NASTY for each in page.data["runs"])
    assert NASTY in page.text and "alert(2)" in page.text
    assert "<script>" not in (out / "report.md").read_text().replace("\\<", "")


def test_what_a_run_wrote_stays_text(tmp_path: Path) -> None:
    tag, runs = "<svg onload=a()>", tmp_path / "runs"
    write_run(runs / "a", layers={f"conv{tag}": 432, "fc": 640}, config={"model": {"_target_": f"x.{tag}", tag: tag}})
    summary = json.loads((runs / "a" / "summary.json").read_text()) | {"finished": tag, "val": tag}
    (runs / "a" / "summary.json").write_text(json.dumps(summary))
    write_run(runs / "b", done=False, config={"data": {"limit_train": tag}})
    (runs / "b" / "metrics.csv").write_text((runs / "b" / "metrics.csv").read_text().replace("finetune,", f"{tag},"))
    (runs / "b" / "error.json").write_text(
        json.dumps(dict.fromkeys(("type", "message", "traceback", "host", "time"), tag))
    )
    write_sweep(runs, {tag: [tag]})
    out, page = report(runs)
    markdown = (out / "report.md").read_text()
    assert "svg" not in {name for name, _ in page.elements} and tag in page.text
    assert not [key for _, attributes in page.elements for key in attributes if key.startswith("on")]
    assert r"\<svg" in markdown and tag not in markdown.replace(r"\<", "")


def test_commands_to_copy_and_cells_to_open_run_nothing_else(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "=1+1", method="uniform")
    write_run(runs / "a`<b>` ; touch x", done=False, stop_after=9)
    write_error(runs / "a`<b>` ; touch x")
    out, page = report(runs)
    quoted = f"resume='{runs}/a`<b>` ; touch x'"
    assert quoted in page.text
    assert f"`` python -m bsq_lightning.train {quoted} ``" in (out / "report.md").read_text()
    assert {line["run"] for line in csv.DictReader((out / "runs.csv").open())} == {"'=1+1", "a`<b>` ; touch x"}


ODD: dict[str, tuple[str, str | int, object]] = {
    "compression as text": ("summary.json", "sizes", {name: {"bits": 1, "compression": "x"} for name in COUNTINGS}),
    "negative compression": ("summary.json", "sizes", {name: {"bits": 1, "compression": -1} for name in COUNTINGS}),
    "seconds as text": ("summary.json", "seconds", {"bits": "x"}),
    "huge mean": ("summary.json", "mean_precision", 10**400),
    "infinite weights": ("scheme.json", "float_parameters", float("inf")),
    "huge weights": ("scheme.json", "float_parameters", 10**400),
    "infinite epoch": ("adjustments.jsonl", "epoch", float("inf")),
    "huge bits": ("adjustments.jsonl", "layers", {"conv1": {"from": 8, "to": 10**400}}),
    "infinite alpha": ("config.yaml", "reg", {"alpha": float("inf")}),
    "infinite precision": ("config.yaml", "quant", {"precision": float("inf"), "bits": {}}),
    "a number as a name": ("config.yaml", 1, 2),
    "deep JSON": ("summary.json", "more", None),
    "deep YAML": ("config.yaml", "more", None),
}


@pytest.mark.parametrize(("name", "key", "value"), ODD.values(), ids=ODD.keys())
def test_no_run_keeps_the_others_from_their_report(name: str, key: str | int, value: object, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_run(runs / "odd", alpha=1e-3)
    write_many(runs, [5e-3], [1], [2, 4])
    path = runs / "odd" / name
    if value is None:
        nested = "[" * 100000 if path.suffix == ".json" else f"{path.read_text()}more: {'[' * 3000}{']' * 3000}\n"
        path.write_text(nested)
    elif path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {key: value}))
    else:
        *before, last = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        path.write_text("\n".join([*before, json.dumps(json.loads(last) | {key: value})]) + "\n")
    _, page = report(runs)
    assert {"alpha=0.005,seed=1", "uniform=2,seed=1"} <= {each["name"] for each in page.data["runs"]}
    assert "odd" in page.text


def test_what_is_wrong_is_said_everywhere(troubled: Path) -> None:
    out, page = report(troubled)
    markdown = (out / "report.md").read_text()
    states = {line["run"]: line["state"] for line in csv.DictReader((out / "runs.csv").open())}
    expected = {"stopped": "unfinished", "failed": "failed", "never": "missing", "junk": "unreadable"}
    assert {name: states[name] for name in expected} == expected
    for name in expected:
        assert name in page.text and name in markdown
    assert f"python -m bsq_lightning.train resume={troubled / 'failed'}" in page.text
    assert "at 0 bits" in page.text and "at 0 bits" in markdown
    assert len(page.data["groups"]) == 2 and page.data["groups"][0]["model"] == "ResNet-20"
    assert {path.name for path in out.glob("front*.png")} == {
        "front-resnet-20-cifar-10.png",
        "front-resnet-56-cifar-10.png",
    }
    begins = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}
    for form, first in begins.items():
        drawn = sorted(out.glob(f"*.{form}"))
        assert len(drawn) == 8 and all(path.read_bytes().startswith(first) for path in drawn), form


@pytest.mark.parametrize("accuracies", [[0.92], [0.92, 0.915, 0.31], [0.92, 0.9195, 0.919, 0.1, 0.5]])
def test_every_point_and_every_bar_lies_inside_the_picture(accuracies: list[float], tmp_path: Path) -> None:
    for i, accuracy in enumerate(accuracies):
        write_run(tmp_path / f"{i}", alpha=1e-3 * 4**i, accuracy=accuracy)
        write_run(tmp_path / f"u{i}", method="uniform", precision=2 + i, accuracy=accuracy - 0.002)
    write_run(tmp_path / "open", alpha=0.7, done=False, stop_after=2)
    data = page_data(collect([tmp_path]))
    (group,) = data["groups"]
    for kinds in (("paper", "signed"), ("gbops",)):
        axes = front_figure(group, data["runs"], kinds).axes
        for column, kind in enumerate(kinds):
            parts = axes[column :: len(kinds)]
            for row in (row for row in group["rows"] if row["acc"] is not None):
                x = row["gb"] if kind == "gbops" else row["x"][kind]["c"]
                assert parts[0].get_xlim()[0] < x < parts[0].get_xlim()[1], (kind, row["label"])
                within = [axis for axis in parts if axis.get_ylim()[0] < row["acc"] < axis.get_ylim()[1]]
                assert len(within) == 1, (kind, row["label"])
        # The first of the axes is that of the bulk: its points keep their bars.
        low, high = axes[0].get_ylim()
        assert all(low < row["lo"] and row["hi"] < high for row in group["rows"] if (row["acc"] or 0) > 91)


def test_labels_do_not_cover_each_other(tmp_path: Path) -> None:
    for i in range(5):  # as close as the lines of a front where all methods are equally good
        write_run(tmp_path / f"{i}", alpha=1e-3 * (1 + i / 20), accuracy=0.919 + i / 5000)
        write_run(tmp_path / f"u{i}", method="uniform", precision=2 + i, accuracy=0.9195)
    data = page_data(collect([tmp_path]))
    figure = front_figure(data["groups"][0], data["runs"], ("paper", "signed"))
    figure.draw_without_rendering()
    for axis in figure.axes:
        boxes = [text.get_window_extent() for text in axis.texts]
        inside = [box for box in boxes if axis.bbox.overlaps(box)]
        assert len(inside) >= 10
        assert not [1 for a, b in itertools.combinations(inside, 2) if a.overlaps(b)], axis.get_xlabel()


def test_a_float_row_where_no_float_run_is(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a")
    summary = json.loads((tmp_path / "runs" / "a" / "summary.json").read_text())
    summary["accuracy"]["float"] = {"test/acc": 0.9255}
    (tmp_path / "runs" / "a" / "summary.json").write_text(json.dumps(summary))
    out, page = report(tmp_path / "runs")
    assert page.data["groups"][0]["float"] == 92.55
    assert "float, before it was quantized" in page.text
    assert "| float | | 92.55 |" in (out / "report.md").read_text()
    assert "float &  & 92.55 &" in (out / "settings.tex").read_text()


def test_the_latex_table_has_as_many_cells_in_every_line(troubled: Path) -> None:
    """Names of folders and settings are text there, too."""
    write_run(troubled / "other settings", config={"data": {"limit_train": "50%_&\\x"}})
    text = (report(troubled)[0] / "settings.tex").read_text()
    rows = [line for line in text.splitlines() if line.endswith(r" \\")]
    assert len(rows) > 8 and {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {8}
    assert r"50\%\_\&\textbackslash{}x" in text
    assert text.count(r"\begin{tabular}") == text.count(r"\end{tabular}") == 3


def test_points_are_coloured_by_the_knob_where_they_are_many(tmp_path: Path) -> None:
    for i in range(14):
        write_run(tmp_path / f"{i}", alpha=1e-3 * 1.3**i)
    data = page_data(collect([tmp_path]))
    graded = data["groups"][0]["graded"]
    assert graded["name"] == "alpha" and graded["from"] == 1e-3 and graded["to"] == pytest.approx(1e-3 * 1.3**13)
    bars = [
        axis for axis in front_figure(data["groups"][0], data["runs"], ("paper",)).axes if axis.get_ylabel() == "alpha"
    ]
    assert len(bars) == 1


def test_only_unfinished_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", done=False, stop_after=0)
    write_run(tmp_path / "runs" / "b", done=False, stop_after=2)
    (tmp_path / "runs" / "b" / "scheme.json").unlink()
    out, page = report(tmp_path / "runs")
    assert "2 unfinished" in page.text.replace("\n", "") and (out / "report.md").exists()


def test_numbers_that_json_cannot_hold(tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "a", done=False, stop_after=3)
    with (tmp_path / "runs" / "a" / "metrics.csv").open("a") as file:
        file.write("bits,3,400,0.1,nan,inf,nan,nan,nan,,8.0,4.0,3.5,inf,1.0\n")
    _, page = report(tmp_path / "runs")
    assert page.data["runs"][0]["curves"]["train/loss"][-1] is None


def test_a_report_can_be_written_again_beside_its_runs(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    for _ in range(2):
        collection = collect([tmp_path])
        write_report(collection, tmp_path / "report")
        assert collection.counts == {"done": 1}


def test_the_command(tmp_path: Path) -> None:
    write_many(tmp_path / "runs", [5e-3], [1], [2])
    code, output = run("report", f"runs={tmp_path / 'runs'}")
    assert code == 0 and "uniform, 2 bits" in output and str(tmp_path / "runs" / "report" / "index.html") in output, (
        output
    )
    code, output = run("report", f"runs=[{tmp_path / 'runs'},{tmp_path / 'absent'}]", f"out={tmp_path / 'out'}")
    assert code == 0 and "no such folder" in output and (tmp_path / "out" / "index.html").exists(), output
    code, output = run("report", f"runs={tmp_path / 'absent'}")
    assert code == 1 and "no such folder" in output and "Traceback" not in output, output


def test_a_missing_library_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    write_run(tmp_path / "a")
    for name in ("plotly.offline", "matplotlib"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(ModuleNotFoundError, match=r"bsq_lightning\[report\]"):
                write_report(collect([tmp_path]), tmp_path / "report")


@pytest.mark.slow
def test_a_hundred_runs_in_time(tmp_path: Path) -> None:
    for i in range(100):
        write_run(
            tmp_path / f"{i}",
            alpha=1e-3 * 1.3 ** (i // 4),
            seed=i % 4,
            epochs={"bits": 300, "finetune": 50},
            interval=10,
        )
    start = time.process_time()
    write_report(collect([tmp_path]), tmp_path / "report")
    assert time.process_time() - start < 10


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_in_a_browser(troubled: Path, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no Chromium here (apt-get install chromium): the page was not opened")
    out, page = report(troubled)
    command = [
        browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=20000",
        "--window-size=1400,3000",
        "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
        f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", (out / "index.html").as_uri(),
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, timeout=170)
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    assert not console, console
    drawn = re.search(r'data-drawn="(\d+)"', result.stdout)
    assert drawn and int(drawn[1]) == 2 * len(page.data["groups"]) + 7, (
        "front and layers of each group, seven of one run"
    )
    assert result.stdout.count('class="main-svg"') >= 11 and "heatmaplayer" in result.stdout
    assert "a line to beat" in result.stdout and "recalled, unverified" in result.stdout


def test_a_layer_that_has_lost_most_of_its_filters_is_not_shown_as_empty() -> None:
    group = {"model": "m", "data": "d", "bits": {"layers": ["a", "b", "c"], "runs": [0], "z": [[0, 0.390625, 2]]}}
    axis = bits_figure(group, [{"label": "run", "seed": 1}]).axes[0]
    assert [text.get_text() for text in axis.texts] == ["0", "0.4", "2"]
    assert axis.images[0].get_array().tolist() == [[0, 1, 2]]
