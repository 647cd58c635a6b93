"""The SLURM launcher where there is no SLURM; against a daemon it is tested in tests/slurm/."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.cli.sweep.launch import Point
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY, run

pytest.importorskip("submitit")


def point(*overrides: str) -> Point:
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        cfg = compose("train", overrides=["hydra/launcher=submitit_slurm", *overrides], return_hydra_config=True)
        cfg.hydra.sweep.dir, cfg.hydra.job.name = "somewhere", "train"
        launcher = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    assert isinstance(launcher, dict)
    return Point(cfg, RunFolder(Path("somewhere")), [], {str(key): value for key, value in launcher.items()})


def test_a_point_asks_for_the_devices_that_it_trains_on() -> None:
    from bsq_lightning.cli.sweep.slurm import resources

    asked = resources(point("trainer=ddp", "trainer.devices=4", "trainer.num_nodes=2"))
    assert (asked["nodes"], asked["tasks_per_node"], asked["gpus_per_node"]) == (2, 4, 4)
    assert asked["srun_args"] == ["--cpus-per-task=8"]
    without = resources(point("hydra.launcher.gpus_per_node=null", "hydra.launcher.cpus_per_task=null"))
    assert not {"gpus_per_node", "srun_args", "partition"} & without.keys()


def test_a_number_of_devices_that_only_a_node_knows_is_refused() -> None:
    from bsq_lightning.cli.sweep.slurm import resources

    with pytest.raises(ValueError, match="tasks_per_node=-1, which is trainer.devices"):
        resources(point("trainer.devices=-1"))


@pytest.mark.slow
def test_without_slurm_it_says_so(tmp_path: Path) -> None:
    command = ["-m", *TINY, "seed=1,2", "hydra/launcher=submitit_slurm", f"hydra.sweep.dir={tmp_path}"]
    code, output = run("train", *command, PATH=str(tmp_path))
    assert code == 1 and "no SLURM here" in output and "login node" in output and "Traceback" not in output


def test_what_sbatch_would_get_is_shown_and_nothing_is_sent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from bsq_lightning.cli.sweep.slurm import submission_files

    points = [point("hydra.launcher.partition=gpu", f"seed={seed}") for seed in (1, 2)] + [point("trainer.devices=4")]
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match="login node"):
        submission_files(points)
    for name, code in {"srun": "exit 0", "sbatch": f"touch {tmp_path}/sent"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{code}\n")
        (tmp_path / name).chmod(0o755)
    array, alone = submission_files(points)
    assert "#SBATCH --partition=gpu\n" in array and "#SBATCH --array=0-1%2\n" in array
    assert "#SBATCH --signal=USR2@120\n" in array and "srun" in array
    assert "#SBATCH --ntasks-per-node=4\n" in alone and "--partition" not in alone
    assert not (tmp_path / "sent").exists()
