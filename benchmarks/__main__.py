"""Runs rows, each in a process of its own, so that one that dies or grows takes no other with it."""

import argparse
import importlib
import json
import subprocess
import sys
import traceback
from dataclasses import asdict
from pathlib import Path

from benchmarks.records import table, write_record

ROWS = (
    "step_resnet20", "step_resnet50", "update_resnet50", "state", "host_syncs", "adjustment", "kernels", "compile",
    "bf16", "input_cifar10", "epoch", "first_step", "growth", "unpacking", "latency",
    "post_training", "methods",
)  # fmt: skip
RESULTS = Path(__file__).parent / "results"


def run_row(row: str, arguments: argparse.Namespace) -> str:
    """Runs one row in this process and writes its record; returns ``done``, ``skipped`` or ``failed``."""
    import torch

    from benchmarks import machine
    from benchmarks.harness import Settings, SkipRow

    threads = arguments.threads or torch.get_num_threads()
    torch.set_num_threads(threads)
    settings = Settings(arguments.quick, threads, arguments.device, arguments.full_epoch)
    record: dict = {"settings": asdict(settings), "machine": machine.describe(settings.device)}
    if note := machine.warning(record["machine"]):
        print(f"WARNING: {note}", flush=True)
    print(f"{row}: {json.dumps(record['machine'])}", flush=True)
    others = machine.OtherWork()
    try:
        if settings.device != "cpu" and not torch.cuda.is_available():
            raise SkipRow("no CUDA device here")
        report = importlib.import_module(f"benchmarks.{row}").run(settings)
        record |= {"status": "done", "lines": report.lines, "numbers": report.numbers}
    except SkipRow as reason:
        record |= {"status": "skipped", "reason": str(reason)}
    except Exception as error:
        traceback.print_exc()
        record |= {"status": "failed", "reason": f"{type(error).__name__}: {error}".split("\n")[0]}
    cores = others.cores()
    record["machine"]["cores_used_by_others"] = None if cores is None else round(cores, 2)
    record["warning"] = machine.warning(record["machine"])
    write_record(arguments.out, row, record)
    return record["status"]


def run_in_child(row: str, arguments: argparse.Namespace) -> bool:
    """Whether the row ran or said why it cannot."""
    command = [sys.executable, "-m", "benchmarks", row, "--out", str(arguments.out), "--device", arguments.device]
    command += ["--threads", str(arguments.threads)] if arguments.threads else []
    command += ["--quick"] * arguments.quick + ["--full-epoch"] * arguments.full_epoch
    ended = subprocess.run([*command, "--no-table"]).returncode
    if ended < 0:
        settings = {"quick": arguments.quick, "threads": arguments.threads, "device": arguments.device}
        reason = f"its process was ended by signal {-ended}" + (", for want of memory perhaps" if ended == -9 else "")
        write_record(arguments.out, row, {"settings": settings, "status": "failed", "reason": reason})
    return ended == 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Nothing else should run meanwhile.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"all, or some of {', '.join(ROWS)}")
    parser.add_argument("--quick", action="store_true", help="seconds a row; a smoke test, no measurement")
    parser.add_argument("--threads", type=int, help="torch's default without it")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--out", type=Path, help="folder of the JSONs (benchmarks/results, with --quick its quick/)")
    parser.add_argument("--full-epoch", action="store_true", help="row epoch: whole epochs, not the first steps")
    parser.add_argument("--table", action="store_true", help="run nothing, show the records of --out")
    parser.add_argument("--no-table", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.out = (arguments.out or (RESULTS / "quick" if arguments.quick else RESULTS)).resolve()
    rows = arguments.rows or list(ROWS)
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no row {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    good = True
    if not arguments.table:
        if len(rows) == 1:
            good = run_row(rows[0], arguments) != "failed"
        else:
            good = all([run_in_child(row, arguments) for row in rows])
    if not arguments.no_table:
        print(table(arguments.out, rows))
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
