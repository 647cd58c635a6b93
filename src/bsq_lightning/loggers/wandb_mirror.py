"""Weights & Biases: one W&B run for each run folder, over all its stages and resumes."""

import inspect
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

from bsq_lightning.files import read_json, whole_lines, write_whole
from bsq_lightning.loggers.heat_map import heat_map
from bsq_lightning.loggers.run_mirror import RunMirror, end_of_stage
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import Scheme

if TYPE_CHECKING:
    from wandb.sdk.wandb_run import Run

log = logging.getLogger(__name__)
AXIS = "trainer/global_step"  # Lightning's name for it
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
        settings = {key: value for key, value in settings.items() if value is not None}
        own = set(inspect.signature(WandbLogger.__init__).parameters)
        #: What ``wandb.init`` is asked for; the rest is Lightning's.
        self.arguments: dict[str, Any] = {
            "name": self.folder.resolve().name, "project": project, "dir": save_dir, "group": group, "resume": "allow",
            **{key: value for key, value in settings.items() if key not in own or key in ("name", "id")},
        }  # fmt: skip
        self._of_lightning = {key: value for key, value in settings.items() if key in own and key not in ("name", "id")}
        super().__init__(save_dir=save_dir, project=project, **self._of_lightning)
        self._adjustments = 0
        self._own_data_dir = False

    @rank_zero_only
    def begin(self, config: dict[str, Any]) -> None:
        import wandb

        kept = read_json(self._kept) if self._kept.exists() else {}
        arguments = dict(self.arguments)
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
            run = wandb.init(**arguments)
        except Exception as error:  # whatever it is, training does not need W&B
            if arguments["mode"] == "offline":
                raise
            log.warning("W&B goes offline, its server does not take this run: %s", str(error).split("\n")[0])
            wandb.teardown()  # its service still holds the id
            arguments["mode"] = "offline"
            run = wandb.init(**arguments)
        # Lightning's own way to a run passes what wandb warns of; it takes one that is there.
        super().__init__(save_dir=arguments["dir"], experiment=run, **self._of_lightning)
        run.define_metric(AXIS)
        run.define_metric("*", step_metric=AXIS, step_sync=True)
        if not run.disabled:
            write_whole(self._kept, json.dumps({"id": run.id, "group": run.group or None}))
        if not run.offline:
            log.info("W&B: %s", run.url)
        self._repeat(run.summary.get(AXIS, -1))

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
        row = RunFolder(self.folder).metrics()[-1]
        step = int(row["step"]) - 1  # Lightning names an epoch's metrics by its last step
        # Lightning logs those with a slash itself.
        self.log_metrics({key: value for key, value in _values(row).items() if "/" not in key}, step)
        self._log_bits(step)

    def _repeat(self, last: int) -> None:
        """Shows what the run folder has and W&B may not have yet, from step ``last`` on.

        A killed process takes the last seconds with it that wandb had not written, and wandb cannot sync a file that
        ends before it names its run; so an offline run that goes on begins with all of its past.
        """
        folder = RunFolder(self.folder)
        steps, results, ends, before = folder.steps(), folder.results(), {}, 0
        for stage, count in steps.items():
            ends[stage], before = (before, before + count - 1), before + count
        for row in folder.metrics():
            step = ends[row["stage"]][0] + int(row["step"]) - 1
            if step >= last:
                self.log_metrics(_values(row), step)
            if step >= last and step == ends[row["stage"]][1] and row["stage"] in results:
                self.log_metrics(end_of_stage(results[row["stage"]]), step)
        if before:
            self._log_bits(before - 1)

    def _log_bits(self, step: int) -> None:
        """Table, picture and scheme after an adjustment; after a resume all adjustments so far once more."""
        adjustments = [json.loads(line) for line in whole_lines(self.folder / "adjustments.jsonl")]
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
            offline, files = run.offline, Path(run.dir)
            run.finish(exit_code=exit_code)
            self._experiment = None
            if offline and not run.disabled:
                log.info("W&B is offline; to upload: wandb sync %s", shlex.quote(str(files.parent)))
        if self._own_data_dir:
            del os.environ["WANDB_DATA_DIR"]


def _values(row: dict[str, str]) -> dict[str, Any]:
    """A row of ``metrics.csv`` as it is shown."""
    numbers = {key: float(value) for key, value in row.items() if value and key not in ("stage", "step")}
    return {"stage": row["stage"], **numbers}
