"""The machine that a row ran on, and what else used its processor meanwhile."""

import os
import platform
import time
from pathlib import Path
from typing import Any

import lightning
import torch

TICKS = os.sysconf("SC_CLK_TCK")


class OtherWork:
    """Cores that other processes keep busy, from now on: busy time of all cores less that of this process."""

    def __init__(self) -> None:
        self._before = self._now()

    def cores(self) -> float | None:
        """Mean so far; None where there is no /proc/stat."""
        if self._before is None or (now := self._now()) is None:
            return None
        seconds, busy, own = (b - a for a, b in zip(self._before, now, strict=True))
        return max(0.0, busy - own) / seconds

    def _now(self) -> tuple[float, float, float] | None:
        try:
            fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        except OSError:
            return None
        used = os.times()
        busy = sum(fields) - fields[3] - fields[4]  # without idle and iowait
        return time.monotonic(), busy / TICKS, used.user + used.system + used.children_user + used.children_system


def busiest(seconds: float = 1.0) -> tuple[float | None, dict[str, float]]:
    """Cores used by others in the next second, and by which processes, those above 3 % of one."""
    others, before = OtherWork(), _processor_seconds()
    time.sleep(seconds)
    cores, after = others.cores(), _processor_seconds()
    used = {key: (after[key] - before[key]) / seconds for key in after if key in before and key[0] != os.getpid()}
    found = {f"{name} ({pid})": round(share, 2) for (pid, name), share in used.items() if share > 0.03}
    return cores, dict(sorted(found.items(), key=lambda item: -item[1])[:5])


def _processor_seconds() -> dict[tuple[int, str], float]:
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, rest = stat.read_text().split("(", 1)[1].rsplit(")", 1)
        except (OSError, IndexError):
            continue  # it ended
        fields = rest.split()
        found[int(stat.parent.name), name] = (int(fields[11]) + int(fields[12])) / TICKS
    return found


def describe(device: str) -> dict[str, Any]:
    """Processor, memory, versions, load."""
    gpu = device != "cpu" and torch.cuda.is_available()
    cores, processes = busiest()
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "ram_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1),
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "load_at_start": [round(load, 2) for load in os.getloadavg()],
        "cores_used_by_others_at_start": None if cores is None else round(cores, 2),
        "other_processes_at_start": processes,
    }


def warning(machine: dict[str, Any]) -> str | None:
    """Why the timings are not to be trusted, if something else uses the processor."""
    at_start, later = machine["cores_used_by_others_at_start"], machine.get("cores_used_by_others")
    if max(at_start or 0.0, later or 0.0) <= 0.1:
        return None
    named = ", ".join(f"{name} {share}" for name, share in machine["other_processes_at_start"].items())
    text = f"other processes use the processor: {at_start} cores at the start ({named or 'none above 3 %'})"
    return text + (f", {later} over the row" if later is not None else "")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())
