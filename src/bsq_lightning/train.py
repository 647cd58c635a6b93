"""``python -m bsq_lightning.train model=resnet20 reg.alpha=1e-3``: float -> bit planes -> fine-tuning -> test.

The whole pipeline in one run folder; ``-m`` sweeps; ``resume=FOLDER`` continues; ``preflight=only`` checks;
``trainer=ddp trainer.devices=8`` trains on several devices.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command
from bsq_lightning.cli.objective import objective
from bsq_lightning.cli.run.resume import rewrite_command_line
from bsq_lightning.cli.trust import check_targets, trusted_packages


@plain_errors
def train(cfg: DictConfig) -> float | list[float] | None:
    """Runs one config and returns its objective, for sweepers. A finished run is shown again, not repeated."""
    # Torch and Lightning take seconds to import: after Hydra has answered --help and --cfg, or refused an override.
    with heavy_imports():
        from bsq_lightning.cli.building.checks import check_settings
        from bsq_lightning.cli.run.one_run import run
        from bsq_lightning.cli.run.processes import run_ranks, starts_ranks, stop_politely
        from bsq_lightning.run_folder import RunFolder

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    if "trust" in cfg:  # resumed: the config is the folder's, which may be somebody else's
        check_targets(OmegaConf.to_container(cfg, resolve=True), folder.config, trusted_packages(cfg.trust))
    check_settings(cfg, HydraConfig.get().overrides.task)
    stop_politely(run_ranks if starts_ranks(cfg) else run, cfg, folder)
    return objective(cfg.get("objective"), folder.summary()) if folder.is_finished else None


def main() -> None:
    """Console entry point."""
    rewrite_command_line()
    run_command(train, "train")


if __name__ == "__main__":
    main()
