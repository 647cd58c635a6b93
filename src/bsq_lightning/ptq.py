"""``python -m bsq_lightning.ptq ptq=swis ptq.shifts=2 run=FOLDER``: trained weights quantized without training.

Or on float weights: ``model=resnet20 data=cifar10 model.weights=FILE``. It leaves a run folder like any other.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command


@plain_errors
def ptq(cfg: DictConfig) -> float:
    """Quantizes one network and returns its test accuracy. A finished run is shown again, not repeated."""
    with heavy_imports():
        from bsq_lightning.cli.building.checks import check_settings
        from bsq_lightning.cli.building.post_training import begun_from
        from bsq_lightning.cli.run.layer_errors import print_layers
        from bsq_lightning.cli.run.one_run import run
        from bsq_lightning.cli.run.processes import stop_politely
        from bsq_lightning.cli.settings import check_values
        from bsq_lightning.run_folder import RunFolder

    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    check_values(cfg)
    cfg = begun_from(cfg, HydraConfig.get().overrides.task)
    check_settings(cfg)
    stop_politely(run, cfg, folder)
    print_layers(folder)
    return folder.summary()["accuracy"]["final"]["test/acc"]


def main() -> None:
    """Console entry point."""
    run_command(ptq, "ptq")


if __name__ == "__main__":
    main()
