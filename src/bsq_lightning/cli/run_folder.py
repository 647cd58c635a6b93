"""The run folder: a contract that other commands read.

``config.yaml`` (resolved; resume reads it) beside Hydra's ``.hydra/``; ``checkpoints/last.ckpt`` (newest state, its
stage inside), ``float.ckpt`` and ``bits.ckpt`` (ends of stages); ``metrics.csv`` (every epoch), ``adjustments.jsonl``
(every adjustment), ``scheme.json`` (bits found), ``stages.json`` (results of the stages that are done), and
``summary.json``, written last: the run is finished.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bsq_lightning.files import read_json, write_whole


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run folder and its small JSON files."""

    path: Path

    @classmethod
    def existing(cls, path: str | Path) -> "RunFolder":
        """A folder that a run was started in.

        Raises:
            FileNotFoundError: the folder is missing or no run folder.
        """
        folder = cls(Path(path).expanduser().resolve())
        if not folder.config.is_file():
            raise FileNotFoundError(f"{folder.path} is not a run folder: it has no config.yaml")
        return folder

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def last(self) -> Path:
        return self.checkpoints / "last.ckpt"

    def check_writable(self) -> None:
        """Raises PermissionError, with the path, where nothing can be written."""
        try:
            write_whole(self.checkpoints / ".writable", "")
            (self.checkpoints / ".writable").unlink()
        except OSError as error:
            raise PermissionError(
                f"the run folder {self.path} cannot be written ({error.strerror}): "
                "choose another with hydra.run.dir=FOLDER"
            ) from error

    @property
    def is_finished(self) -> bool:
        """Whether the run wrote its summary, which it does last."""
        return (self.path / "summary.json").exists()

    def results(self) -> dict[str, Any]:
        """Results by stage, of the stages that are done."""
        path = self.path / "stages.json"
        return read_json(path) if path.exists() else {}

    def add_result(self, stage: str, result: dict[str, Any]) -> None:
        """Records a finished stage."""
        import json

        write_whole(self.path / "stages.json", json.dumps({**self.results(), stage: result}, indent=1))

    def summary(self) -> dict[str, Any]:
        """``summary.json``.

        Raises:
            FileNotFoundError: the run is not finished.
        """
        if not self.is_finished:
            raise FileNotFoundError(
                f"{self.path} is not finished (no summary.json): continue it with "
                f"python -m bsq_lightning.train resume={self.path}"
            )
        return read_json(self.path / "summary.json")
