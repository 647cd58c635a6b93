"""Seconds of a report over 100 made-up runs of 350 epochs and 20 layers, the command included.

Command: python benchmarks/report_time.py [--runs 100] [--epochs 350] [--interval 10]
"""

import argparse
import cProfile
import pstats
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.reports.folders import write_run  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=350)
    parser.add_argument("--interval", type=int, default=10, help="epochs between two adjustments")
    parser.add_argument("--profile", action="store_true", help="also print where the time goes")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        epochs = {"bits": arguments.epochs - arguments.epochs // 7, "finetune": arguments.epochs // 7}
        for i in range(arguments.runs):
            write_run(
                Path(folder, f"run{i}"),
                alpha=1e-3 * 1.3 ** (i // 4),
                seed=i % 4,
                epochs=epochs,
                interval=arguments.interval,
            )
        start = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "bsq_lightning.report", f"runs={folder}"], check=True, stdout=subprocess.DEVNULL
        )
        seconds, used = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        megabytes = Path(folder, "report", "index.html").stat().st_size / 1e6
        print(f"{arguments.runs} runs x {arguments.epochs} epochs: {seconds:.2f} s, page of {megabytes:.1f} MB")
        print(f"of these on a processor: {used.ru_utime + used.ru_stime:.2f} s (the rest is other work on the machine)")
        if arguments.profile:
            _profile(Path(folder))


def _profile(folder: Path) -> None:
    from bsq_lightning.reports import collect, write_report

    with cProfile.Profile() as profile:
        write_report(collect([folder]), folder / "report")
    pstats.Stats(profile).sort_stats("cumulative").print_stats(25)


if __name__ == "__main__":
    main()
