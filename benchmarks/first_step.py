"""Seconds from the command to the first training step, and to the end of --help, with where the imports go."""

import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.announce_first_step import FIRST_STEP
from benchmarks.harness import Report, Settings, Spread

ROOT = Path(__file__).parents[1]
TRAIN = [sys.executable, "-m", "bsq_lightning.train"]
ANNOUNCE = "+callbacks.announce._target_=benchmarks.announce_first_step.AnnounceFirstStep"


def environment(settings: Settings) -> dict[str, str]:
    """This one, with the checkout importable, as many threads as asked for, and output at once."""
    path = os.pathsep.join(filter(None, [str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(settings.threads)}


def to_first_step(settings: Settings, *overrides: str) -> float:
    """Seconds until the first training step begins; the run is ended there.

    Raises:
        RuntimeError: it ended by itself; with its last lines.
    """
    with tempfile.TemporaryDirectory() as folder:
        accelerator = f"trainer.accelerator={'cpu' if settings.device == 'cpu' else 'gpu'}"
        command = [*TRAIN, *overrides, accelerator, "logger=none", f"hydra.run.dir={folder}/run", ANNOUNCE]
        start, lines = time.perf_counter(), []
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment(settings), cwd=folder
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                lines.append(line)
                if FIRST_STEP in line:
                    seconds = time.perf_counter() - start
                    process.kill()
                    return seconds
    raise RuntimeError("no training step: " + "".join(lines[-5:]))


def help_seconds(settings: Settings) -> float:
    start = time.perf_counter()
    subprocess.run([*TRAIN, "--help"], check=True, stdout=subprocess.DEVNULL, env=environment(settings))
    return time.perf_counter() - start


def import_seconds(settings: Settings) -> dict[str, float]:
    """Seconds of the imports of a run, by top package; each counts what it executes itself."""
    code = "import bsq_lightning.train, bsq_lightning.cli.run.one_run, hydra"
    command = [sys.executable, "-X", "importtime", "-c", code]
    result = subprocess.run(command, check=True, capture_output=True, text=True, env=environment(settings))
    found: Counter[str] = Counter()
    for line in result.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").split("|") if line.count("|") == 2 else ("", "", "")
        if own.strip().isdigit():
            found[name.strip().split(".")[0]] += int(own)
    return {name: microseconds / 1e6 for name, microseconds in found.most_common()}


def run(settings: Settings) -> Report:
    report, rounds = Report(), settings.choose(5, 1)
    digits = [to_first_step(settings, "experiment=quickstart") for _ in range(rounds)]
    report.add("command to first training step, digits", Spread.of(digits), "s")
    if Path(os.environ.get("BSQ_DATA", ""), "cifar-10-batches-py").is_dir():
        cifar = [to_first_step(settings, "data=cifar10", "data.download=false") for _ in range(rounds)]
        report.add("command to first training step, CIFAR-10", Spread.of(cifar), "s")
    else:
        report.add("command to first training step, CIFAR-10", "left out: BSQ_DATA has no cifar-10-batches-py")
    report.add("--help", Spread.of([help_seconds(settings) for _ in range(rounds)]), "s")
    imports = import_seconds(settings)
    largest = ", ".join(f"{name} {seconds:.2f}" for name, seconds in list(imports.items())[:6])
    report.add("imports of a run, their own code", f"{sum(imports.values()):.2f} s: {largest}")
    report.numbers["imports"] = imports
    return report
