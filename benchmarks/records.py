"""One JSON for each row, and the table over all that are there."""

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from bsq_lightning.files import read_json, write_whole


def write_record(folder: Path, row: str, record: dict[str, Any]) -> None:
    """Whole or absent: a row that is cut off leaves the record of its last run."""
    record = {"row": row, "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **record}
    write_whole(folder / f"{row}.json", json.dumps(record, indent=1, default=_plain) + "\n")


def table(folder: Path, rows: Sequence[str]) -> str:
    """Markdown: what | reached | to reach | how, in the order of ``rows``."""
    lines = ["| what | reached | to reach | how |", "|---|---|---|---|"]
    remarks, machines = [], []
    for row in rows:
        if not (folder / f"{row}.json").exists():
            continue
        record = read_json(folder / f"{row}.json")
        lines.extend(_lines(row, record))
        if "machine" in record and (machine := _machine(record["machine"])) not in machines:
            machines.append(machine)
        if record.get("warning"):
            remarks.append(f"- {row}: {record['warning']}")
    return "\n".join([*lines, "", *machines, *([""] if remarks else []), *remarks])


def _lines(row: str, record: dict[str, Any]) -> list[str]:
    settings = record.get("settings", {})
    threads = settings.get("threads")
    how = f"{row}, {settings.get('device')}, {threads} thread{'' if threads == 1 else 's'}"
    how += ", QUICK: not a measurement" if settings.get("quick") else ""
    if record["status"] != "done":
        return [f"| {row} | {record['status']}: {record.get('reason')} | | {how} |".replace("\n", " ")]
    found = []
    for line in record["lines"]:
        missed = " (missed)" if line.get("met") is False else ""
        found.append(f"| {line['what']} | {line['reached']}{missed} | {line['to_reach']} | {how} |")
    return found


def _machine(machine: dict[str, Any]) -> str:
    device = "" if machine["device"] == "cpu" else f", {machine['device']}"
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['ram_gb']} GB{device}; Python {machine['python']}, "
        f"torch {machine['torch']}, lightning {machine['lightning']}"
    )


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
