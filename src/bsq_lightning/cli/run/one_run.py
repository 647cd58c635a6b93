"""One run in its folder, from its settled config to its summary; each rank of a run on several devices runs this."""

from dataclasses import replace

from omegaconf import DictConfig

from bsq_lightning.checkpoint_io import mend_last
from bsq_lightning.cli.building.experiment import Experiment
from bsq_lightning.cli.run.float_stage import take_float_stage
from bsq_lightning.cli.run.joining import joined
from bsq_lightning.cli.run.mirrors import Mirrors, build_loggers, mirrored
from bsq_lightning.cli.run.post_training import quantize_without_training
from bsq_lightning.cli.run.preflight import preflight
from bsq_lightning.cli.run.stages import run_stages
from bsq_lightning.cli.run.summary_table import print_summary
from bsq_lightning.cli.settled import settle
from bsq_lightning.distributed import going_first
from bsq_lightning.run_folder import RunFolder


def run(cfg: DictConfig, folder: RunFolder) -> None:
    """Trains what is not trained yet and writes ``summary.json``; a finished run is shown again, not repeated.

    Raises:
        ValueError, OSError: a mistake of the user, before any training.
        PeerLostError: another rank of this run ended.
    """
    with joined(cfg) as rank:
        folder = replace(folder, writer=rank == 0)
        with going_first(folder.writer):
            if folder.writer:
                folder.check_writable()
        with folder.running():
            with going_first(folder.writer):
                cfg = settle(cfg, folder)
            if folder.is_finished:
                if folder.writer:
                    print_summary(folder, folder.summary())
                return
            with folder.recording_errors():
                _run(cfg, folder)


def _run(cfg: DictConfig, folder: RunFolder) -> None:
    with going_first(folder.writer):
        if folder.writer:
            mend_last(folder.last)
            take_float_stage(cfg, folder)
    experiment = Experiment(cfg)
    build_loggers(cfg, folder)  # a missing package is found here; nothing is connected
    with going_first(folder.writer):
        if folder.writer:
            quantize_without_training(experiment, folder)
    datamodule = preflight(experiment, folder)
    if experiment.only_preflight:
        return
    with mirrored(cfg, folder) as mirrors:
        summary = run_stages(experiment, folder, datamodule, mirrors if folder.writer else Mirrors([], folder))
        if summary is not None:
            folder.finish(summary)
            mirrors.log_summary(summary)
        if folder.writer and summary is not None:
            print_summary(folder, summary)
        elif folder.writer:
            print(f"stopped after stage {experiment.until}, as asked; go on with resume={folder.path}")
