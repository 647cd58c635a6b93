"""``python -m bsq_lightning.allocate target.mean_bits=2 model.weights=FILE``: the best scheme under a budget.

What each layer's rounding would cost is estimated on the float network, and an exact solver chooses the bits. Takes
what train takes; ``quant=sensitivity scheme=FOLDER/scheme.json`` trains the scheme.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command


@plain_errors
def allocate(cfg: DictConfig) -> float:
    """Writes ``scheme.json`` and returns the predicted rise of the loss."""
    with heavy_imports():
        from bsq_lightning.cli.building.checks import check_settings
        from bsq_lightning.cli.search.allocation import allocate_bits, print_allocation
        from bsq_lightning.cli.search.target import Target
        from bsq_lightning.run_folder import RunFolder

    check_settings(cfg)
    if cfg.preflight == "only":
        raise ValueError("allocate trains nothing, so there is nothing to check before it: leave preflight out")
    folder = RunFolder(Path(HydraConfig.get().runtime.output_dir))
    found = allocate_bits(cfg, Target(**cfg.target))
    path = folder.write_scheme(found.scheme.to_json())
    print_allocation(found, path)
    return found.predicted


def main() -> None:
    """Console entry point."""
    run_command(allocate, "allocate")


if __name__ == "__main__":
    main()
