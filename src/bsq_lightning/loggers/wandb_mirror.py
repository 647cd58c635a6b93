"""Weights & Biases: one W&B run for each run folder, over all its stages and resumes."""

import csv
import json
import logging
import os
import secrets
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import WandbLogger

from bsq_lightning.files import read_json, write_whole
from bsq_lightning.loggers.heat_map import heat_map
from bsq_lightning.loggers.run_mirror import RunMirror
from bsq_lightning.scheme import Scheme

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)
TABLE = ("stage", "epochs", "layer", "weights", "bits")
SECONDS_TO_CONNECT = 30


class WandbMirror(RunMirror, WandbLogger):
    """Shows a run on W&B: config, metrics, bits of the layers over time, scheme, summary and how it ended.

    Online where there is a key, offline where there is none, after a warning where the server does not answer;
    ``WANDB_MODE`` decides otherwise. There is never a prompt. The id is kept in the run folder's ``wandb.json``, so
    that a resumed run continues under it; ``WANDB_RUN_ID``, which W&B's agents set, goes first.

    Args:
        save_dir: the run folder. All that an offline run needs for ``wandb sync`` is written below its ``wandb/``.
        project: W&B's project.
        group: runs of one sweep share it; None keeps the one of the run's first start.
        settings: further arguments of ``wandb.init``.
    """

    def __init__(
        self, save_dir: str, project: str = "bsq_lightning", group: str | None = None, **settings: Any
    ) -> None:
        self.folder = Path(save_dir)
        super().__init__(
            save_dir=save_dir, project=project, group=group, **{"name": self.folder.resolve().name, **settings}
        )
        self._adjustments = 0
        self._own_data_dir = False

    @rank_zero_only
    def begin(self, config: dict[str, Any]) -> None:
        import wandb

        kept = read_json(self._kept) if self._kept.exists() else {}
        arguments = self._wandb_init
        arguments.pop("anonymous")  # Lightning still passes what wandb warns of
        arguments["config"] = config
        arguments["group"] = arguments["group"] or kept.get("group")
        arguments["id"] = os.environ.get("WANDB_RUN_ID") or kept.get("id") or secrets.token_hex(4)
        if "WANDB_SWEEP_ID" in os.environ:  # W&B's agent has decided them, and wandb would warn
            arguments |= {"id": None, "project": None}
        # Files of tables and artifacts wait for the sync in here and not in the home folder.
        if "WANDB_DATA_DIR" not in os.environ:
            os.environ["WANDB_DATA_DIR"] = str(self.folder.resolve() / "wandb" / "data")
            self._own_data_dir = True
        (self.folder / "wandb").mkdir(exist_ok=True)
        quiet = wandb.Settings(
            quiet=True, show_info=False, init_timeout=float(os.environ.get("WANDB_INIT_TIMEOUT", SECONDS_TO_CONNECT))
        )
        arguments |= {"settings": quiet, "mode": self._mode(quiet)}
        try:
            run = self.experiment
        except wandb.Error as error:
            if arguments["mode"] == "offline":
                raise
            log.warning("W&B goes offline, its server does not take this run: %s", str(error).split("\n")[0])
            wandb.teardown()  # its service still holds the id
            arguments["mode"] = "offline"
            run = self.experiment
        if not run.disabled:
            write_whole(self._kept, json.dumps({"id": run.id, "group": run.group or None}))
        if not run.offline:
            log.info("W&B: %s", run.url)

    @property
    def _kept(self) -> Path:
        return self.folder / "wandb.json"

    def _mode(self, settings: Any) -> str | None:
        """``offline`` where there is no key; None leaves it to wandb, which follows WANDB_MODE and its settings."""
        import wandb

        if wandb.setup(settings).settings.mode != "online":
            return None
        try:
            if wandb.login(prompt=False):
                return None
        except wandb.Error as error:
            log.warning("W&B goes offline, its key is of no use: %s", error)
            return "offline"
        if "WANDB_MODE" in os.environ:
            log.warning("W&B goes offline, although WANDB_MODE=%s: it has no key", os.environ["WANDB_MODE"])
        return "offline"

    @rank_zero_only
    def after_save_checkpoint(self, checkpoint_callback: ModelCheckpoint) -> None:
        """The recorder and the adjustment have written the epoch's files by now."""
        super().after_save_checkpoint(checkpoint_callback)
        with open(self.folder / "metrics.csv", encoding="utf-8") as file:
            *_, row = csv.DictReader(file)
        step = int(row["step"]) - 1  # Lightning names an epoch's metrics by its last step
        self._log_epoch(row, step)
        self._log_bits(step)

    def _log_epoch(self, row: dict[str, str], step: int) -> None:
        """The columns of ``metrics.csv`` that Lightning does not log itself: stage, learning rate, sizes, seconds."""
        own = {key: value for key, value in row.items() if value and "/" not in key and key not in ("stage", "step")}
        self.log_metrics({"stage": row["stage"], **{key: float(value) for key, value in own.items()}}, step)

    def _log_bits(self, step: int) -> None:
        """Table, picture and scheme after an adjustment; after a resume all adjustments so far once more."""
        path = self.folder / "adjustments.jsonl"
        adjustments = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        if len(adjustments) == self._adjustments:
            return
        import wandb

        self._adjustments = len(adjustments)
        scheme = Scheme.load(self.folder / "scheme.json")
        epochs = [0, *(row["epoch"] + 1 for row in adjustments)]
        bits = {
            layer.name: [
                adjustments[0]["layers"][layer.name]["from"],
                *(row["layers"][layer.name]["to"] for row in adjustments),
            ]
            for layer in scheme.layers
        }
        rows = [
            ["bits", epoch, layer.name, layer.size, bits[layer.name][i]]
            for i, epoch in enumerate(epochs)
            for layer in scheme.layers
        ]
        picture = wandb.Image(heat_map(bits, [str(epoch) for epoch in epochs]), caption="bits after epochs")
        self.log_metrics({"bits/table": wandb.Table(list(TABLE), data=rows), "bits/heat_map": picture}, step)
        self._log_scheme()

    def _log_scheme(self, *aliases: str) -> None:
        import wandb

        path = self.folder / "scheme.json"
        if not path.exists():
            return
        scheme = Scheme.load(path)
        artifact = wandb.Artifact(
            f"scheme-{self.experiment.id}",
            type="scheme",
            metadata={"mean_precision": scheme.mean_precision, **scheme.sizes()},
        )
        artifact.add_file(str(path))
        self.experiment.log_artifact(artifact, aliases=["latest", *aliases])

    @rank_zero_only
    def log_summary(self, summary: dict[str, Any]) -> None:
        self._log_scheme("final")
        self.experiment.summary.update(summary)

    @rank_zero_only
    def close(self, exit_code: int) -> None:
        run: Run | None = self._experiment  # type: ignore[assignment]
        if run is not None:
            offline, folders = run.offline, sorted(self.folder.resolve().glob(f"wandb/offline-run-*-{run.id}"))
            run.finish(exit_code=exit_code)
            self._experiment = None
            if offline and not run.disabled:
                log.info("W&B is offline; to upload: wandb sync %s", shlex.join(map(str, folders)))
        if self._own_data_dir:
            del os.environ["WANDB_DATA_DIR"]
