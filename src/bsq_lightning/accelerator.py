"""``python -m bsq_lightning.accelerator run=FOLDER``: cycles, traffic and energy of a run's weights on one array."""

from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, instantiate, plain_errors, run_command


@plain_errors
def accelerator(cfg: DictConfig) -> None:
    """Prints what every layer takes, and what the network takes over the same network computed otherwise."""
    with heavy_imports():
        from bsq_lightning.cli.accelerator_table import print_cost
        from bsq_lightning.cli.settings import check_values
        from bsq_lightning.cli.settings.groups import Accelerator
        from bsq_lightning.hardware import compare, network_cost
        from bsq_lightning.quantized_tensor import load_state
        from bsq_lightning.run_folder import RunFolder

    check_values(cfg, Accelerator)
    folder = RunFolder.existing(cfg.run)
    state, array, energy = load_state(folder.quantized_file), instantiate(cfg.array), instantiate(cfg.energy)
    print_cost(state, network_cost(state, array, energy), compare(state, array, energy, cfg.bits))


def main() -> None:
    """Console entry point."""
    run_command(accelerator, "accelerator")


if __name__ == "__main__":
    main()
