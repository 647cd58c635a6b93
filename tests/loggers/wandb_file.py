"""Reads the file that an offline W&B run leaves: LevelDB's log format around wandb's own messages."""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEADER = 32768, 7


def messages(path: Path) -> Iterator[Record]:
    """The records of a file, whose checksums must hold; a last one without its end (a kill) is left out."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, whole = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, at)
        part = data[at + HEADER : at + HEADER + size]
        if len(part) < size:
            return
        assert zlib.crc32(bytes([kind]) + part) == checksum
        whole, at = whole + part, at + HEADER + size
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(whole)
            whole = b""


class WandbFile:
    """What an offline run holds: run, config, history, summary, artifacts, and how it ended (None: not at all)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config: dict[str, Any] = {}
        self.history: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.artifacts: list[Any] = []
        self.exit_code: int | None = None
        for record in messages(path):
            if record.HasField("run"):
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif record.HasField("history"):
                self.history.append(nested(record.history.item))
            elif record.HasField("summary"):
                merge(self.summary, nested(record.summary.update))
            elif record.HasField("artifact"):
                self.artifacts.append(record.artifact)
            elif record.HasField("exit"):
                self.exit_code = record.exit.exit_code


def nested(items: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for item in items:
        *parents, key = item.nested_key or [item.key]
        node = result
        for parent in parents:
            node = node.setdefault(parent, {})
        node[key] = json.loads(item.value_json)
    return result


def merge(old: dict[str, Any], new: dict[str, Any]) -> None:
    for key, value in new.items():
        if isinstance(value, dict) and isinstance(old.get(key), dict):
            merge(old[key], value)
        else:
            old[key] = value


def offline_runs(folder: Path) -> list[WandbFile]:
    """The offline runs of a run folder, oldest first."""
    return [WandbFile(path) for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]
