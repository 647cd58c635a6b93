"""Mean and spread, groups, labels, and the lines to beat."""

import math
from pathlib import Path

import numpy as np
import pytest

from bsq_lightning.reports import collect
from bsq_lightning.reports.front import Above, above_line, lines, pareto, row_above_line, wilson
from bsq_lightning.reports.published import READ, RECALLED, RESNET20_CIFAR10, published_points
from bsq_lightning.reports.table import MANY, rows
from tests.reports.folders import write_run


def test_runs_that_differ_only_by_seed_are_one_row(tmp_path: Path) -> None:
    summaries = [write_run(tmp_path / f"{i}", seed=i, config={"data": {"root": f"/machine{i}"}}) for i in range(4)]
    write_run(tmp_path / "unfinished", seed=9, done=False, stop_after=4)
    (table,) = collect([tmp_path]).tables.values()
    (row,) = table
    accuracies = [summary["accuracy"]["final"]["test/acc"] for summary in summaries if summary]
    sizes = [summary["sizes"]["signed"]["compression"] for summary in summaries if summary]
    assert row.test_accuracy is not None and (size := row.compression("signed")) is not None
    assert (row.test_accuracy.n, len(row.runs)) == (4, 5)
    np.testing.assert_allclose(
        [row.test_accuracy.mean, row.test_accuracy.std], [np.mean(accuracies), np.std(accuracies, ddof=1)]
    )
    np.testing.assert_allclose([size.mean, size.std], [np.mean(sizes), np.std(sizes, ddof=1)])


def test_a_key_that_an_older_run_lacks_and_a_newer_has_switched_off_splits_no_row(tmp_path: Path) -> None:
    write_run(tmp_path / "older", seed=1)
    write_run(tmp_path / "newer", seed=2, config={"average": {}, "freeze": None})
    write_run(tmp_path / "another", seed=3, config={"average": {"decay": 0.99}})
    (table,) = collect([tmp_path]).tables.values()
    assert sorted(len(row.runs) for row in table) == [1, 2]


def test_other_models_and_data_are_other_groups(tmp_path: Path) -> None:
    write_run(tmp_path / "a")
    write_run(tmp_path / "b", config={"model": {"_target_": "bsq_lightning.models.resnet56"}})
    write_run(tmp_path / "c", config={"data": {"_target_": "bsq_lightning.data.CIFAR100DataModule"}})
    write_run(tmp_path / "d", config={"data": {"limit_train": 256}})
    assert set(collect([tmp_path]).groups) == {
        ("ResNet-20", "CIFAR-10"),
        ("ResNet-56", "CIFAR-10"),
        ("ResNet-20", "CIFAR-100"),
        ("ResNet-20", "CIFAR-10 (256 training images)"),
    }


def test_labels_tell_apart_what_the_knob_does_not(tmp_path: Path) -> None:
    for n in (5, 9):
        for alpha in (1e-3, 2e-3):
            write_run(tmp_path / f"{n}-{alpha}", alpha=alpha, epochs={"bits": n})
    (table,) = collect([tmp_path]).tables.values()
    assert len({row.label for row in table}) == 4 and len({row.curve for row in table}) == 2
    assert "bit planes, alpha 0.001 (bits.epochs=5)" in {row.label for row in table}
    assert {row.curve for row in table} == {"bit planes (bits.epochs=5)", "bit planes (bits.epochs=9)"}


def test_the_lines_to_beat_and_what_lies_above_them(tmp_path: Path) -> None:
    for precision, accuracy in ((4, 0.92), (2, 0.90)):
        write_run(tmp_path / f"u{precision}", method="uniform", precision=precision, accuracy=accuracy)
    write_run(tmp_path / "bsq", alpha=5e-3, accuracy=0.93)
    write_run(tmp_path / "float", method="float", accuracy=0.94)

    def read() -> tuple[dict[str, list[tuple[float, float]]], dict[str, Above | None]]:
        (runs,) = collect([tmp_path]).groups.values()
        table = rows(runs)
        return lines(table, "paper"), {row.setting.method: row_above_line(table, row) for row in table}

    (line,), above = read()[0].values(), read()[1]
    assert [round(y, 2) for _, y in line] == [0.92, 0.90]
    assert above["uniform"] is None and above["float"] is None
    of_planes = above["bit planes"]
    assert of_planes is not None and 0.01 < of_planes.difference < 0.03 and of_planes.line == "uniform"
    assert above_line(line, 100.0, 0.99) is None, "nothing is extrapolated"
    assert above_line(line, line[-1][0] * 1.02, 0.91) == pytest.approx(0.01)

    # A second line, higher by one point everywhere: the bar is the higher of the two.
    for precision, accuracy in ((4, 0.93), (2, 0.91)):
        scheme = {"method": "sensitivity", "knob": "quant.scheme", "baseline": True, "scheme": f"{precision}.json",
                  "stages": {"finetune": {}}}  # fmt: skip
        more = {"quant": scheme, "scheme": f"{precision}.json"}
        write_run(tmp_path / f"s{precision}", method="uniform", precision=precision, accuracy=accuracy, config=more)
    both, above = read()
    assert list(both) == ["uniform", "sensitivity"] or list(both) == ["sensitivity", "uniform"]
    higher = above["bit planes"]
    assert higher is not None and higher.line == "sensitivity" and above["sensitivity"] is None
    assert higher.difference == pytest.approx(of_planes.difference - 0.01)


def test_points_of_a_method_are_one_curve_along_its_knob_wherever_the_knob_is_repeated(tmp_path: Path) -> None:
    """A stage's allocator that is given the knob's value is no second difference; neither is the path of a scheme."""
    for bits in (1.5, 2.0):
        quant = {"method": "water filling", "knob": "quant.mean_bits", "mean_bits": bits,
                 "stages": {"finetune": {"allocator": {"mean_bits": bits}}}}  # fmt: skip
        write_run(tmp_path / f"w{bits}", method="uniform", precision=2, config={"quant": quant})
    for name in ("a", "b"):
        quant = {"method": "sensitivity", "knob": "quant.scheme", "baseline": True, "scheme": name, "stages": {}}
        write_run(tmp_path / name, method="uniform", precision=3, config={"quant": quant, "scheme": name})
    (table,) = collect([tmp_path]).tables.values()
    assert len(table) == 4 and {row.curve for row in table} == {"water filling", "sensitivity"}
    assert len({row.label for row in table}) == 4


def test_points_that_a_sweeper_drew_are_one_cloud_and_told_apart_in_the_table(tmp_path: Path) -> None:
    """Beside a curve of the same method, which stays one; a few lone points stay curves of their own."""
    drawn = [0.0123456789012 * (1 + i) for i in range(MANY)]
    for i, rate in enumerate(drawn):
        write_run(tmp_path / f"{i}", alpha=1e-3 * (1 + i), config={"stages": {"bits": {"optimizer": {"lr": rate}}}})
    for alpha in (1e-3, 2e-3):
        write_run(tmp_path / f"alpha{alpha}", alpha=alpha)
    (table,) = collect([tmp_path]).tables.values()
    assert [row.joined for row in table].count(False) == MANY
    assert {row.curve for row in table if not row.joined} == {"bit planes, each with its own optimizer.lr"}
    assert len({row.curve for row in table if row.joined}) == 1
    assert len({row.label for row in table}) == MANY + 2
    assert "bit planes, alpha 0.001 (optimizer.lr=0.0123457)" in {row.label for row in table}
    few = [run for row in table for run in row.runs if not row.joined][1:]
    assert all(row.joined for row in rows(few)) and len({row.curve for row in rows(few)}) == MANY - 1


def test_the_interval_of_one_seed_has_the_coverage_it_says() -> None:
    """Over all counts that a network of known accuracy can have: the true share is inside 95 % of the time, about."""
    for share, n in ((0.92, 300), (0.5, 100), (0.99, 1000)):
        logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)]
        chance = [math.exp(logs[k] + k * math.log(share) + (n - k) * math.log(1 - share)) for k in range(n + 1)]
        inside = sum(p for k, p in enumerate(chance) if wilson(k / n, n)[0] <= share <= wilson(k / n, n)[1])
        assert 0.93 < inside < 0.975, (share, n, inside)


def test_pareto_against_its_definition() -> None:
    draw = np.random.default_rng(0)
    points = [(float(x), float(y)) for x, y in draw.random((60, 2))]
    front = set(pareto(points))
    for i, (x, y) in enumerate(points):
        assert (i in front) == (not any(a >= x and b >= y for j, (a, b) in enumerate(points) if j != i))


def test_published_points_say_where_they_are_from() -> None:
    read = {(point.name, point.compression) for point in RESNET20_CIFAR10 if point.compression_from == READ}
    assert read == {("BSQ 5e-3", 14.24), ("HAWQ", 13.11)}
    assert all(
        point.provenance == RECALLED for point in RESNET20_CIFAR10 if (point.name, point.compression) not in read
    )
    assert published_points("ResNet-20", "CIFAR-100", {4}) == []
    assert {point.act_precision for point in published_points("ResNet-20", "CIFAR-10", {0, 3})} == {32, 3}
