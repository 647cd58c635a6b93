"""Takes over the float stage of another run, so that a sweep trains it once; the run goes on bit for bit as its own."""

import logging

from omegaconf import DictConfig

from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.cli.building.stage import FLOAT
from bsq_lightning.cli.config import read_config
from bsq_lightning.cli.settled import float_part
from bsq_lightning.files import copy_whole
from bsq_lightning.identity import differences
from bsq_lightning.run_folder import RunFolder

log = logging.getLogger(__name__)


def take_float_stage(cfg: DictConfig, folder: RunFolder) -> None:
    """Copies what the float stage of ``cfg.float_stage`` left into ``folder``, if nothing has been trained there yet.

    Raises:
        FileNotFoundError: that folder is no run folder, or has no finished float stage.
        ValueError: its float stage depends on other settings; lists them. Or its checkpoint cannot be read.
    """
    if not cfg.float_stage or folder.last.exists():
        return
    source = RunFolder.existing(cfg.float_stage)
    trained = source.end_of(FLOAT)
    if not trained.is_file() or FLOAT not in source.results():
        raise FileNotFoundError(f"{source.path} has no finished float stage to share: finish it, or drop float_stage")
    here, there = float_part(cfg), float_part(read_config(source.config))
    if here != there:
        raise ValueError(
            f"the float stage of {source.path} is another one, it differs in: {'; '.join(differences(here, there))}"
        )
    load_checkpoint(trained)  # before it is copied: a bad file stays where it is, under its own name
    folder.write_metrics([row for row in source.metrics() if row["stage"] == FLOAT])
    folder.add_result(FLOAT, source.results()[FLOAT])
    copy_whole(trained, folder.end_of(FLOAT))
    # Last, and by renaming: a start that finds this file goes on from it.
    copy_whole(trained, folder.last)
    log.info("the float stage is that of %s", source.path)
