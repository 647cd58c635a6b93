"""``python -m bsq_lightning.slices run=FOLDER``: a network's bit slices on crossbars, and its accuracy there."""

from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command


@plain_errors
def slices(cfg: DictConfig) -> None:
    """Prints what each layer's slices ask of crossbars, and test accuracy with converters that saturate."""
    with heavy_imports():
        from bsq_lightning.cli.run.opening import open_run
        from bsq_lightning.cli.run.slice_tables import print_slices, saturating_accuracies, slice_rows, write_slices
        from bsq_lightning.cli.settings import check_values
        from bsq_lightning.cli.settings.groups import Slices
        from bsq_lightning.hardware import Crossbars
        from bsq_lightning.quantized_tensor import load_state
        from bsq_lightning.run_folder import RunFolder

    check_values(cfg, Slices)
    machine = Crossbars(cfg.rows, cfg.slice_bits)
    folder = RunFolder.existing(cfg.run)
    state = load_state(folder.quantized_file)
    rows = slice_rows(state, machine)
    accuracies = []
    if cfg.images != 0:
        opened = open_run(cfg.run, cfg.trust, cfg.data.root, cfg.trainer.accelerator)
        accuracies = saturating_accuracies(opened, state, machine, cfg.adc_bits, cfg.images)
    write_slices(folder, machine, rows, accuracies)
    print_slices(folder, rows, accuracies)


def main() -> None:
    """Console entry point."""
    run_command(slices, "slices")


if __name__ == "__main__":
    main()
