"""Every row runs, is recorded and stands in the table; no timing is asserted."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.__main__ import ROWS
from benchmarks.records import table
from bsq_lightning.files import read_json

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_row_runs(row: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "benchmarks", row, "--quick", "--threads", "1", "--out", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    record = read_json(tmp_path / f"{row}.json")
    assert record["machine"]["torch"] and record["settings"]["quick"]
    if record["status"] == "skipped":
        pytest.skip(f"{row}: {record['reason']}")
    assert record["status"] == "done" and record["numbers"]
    for line in record["lines"]:
        assert f"| {line['what']} | {line['reached']}" in table(tmp_path, ROWS)


@pytest.mark.slow
def test_a_row_that_fails_costs_no_other(tmp_path: Path) -> None:
    (tmp_path / "adjustment.json").mkdir()  # cannot be written
    command = [sys.executable, "-m", "benchmarks", "adjustment", "kernels", "--quick", "--threads", "1"]
    result = subprocess.run([*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 1
    assert read_json(tmp_path / "kernels.json")["status"] == "done"
