"""``python -m bsq_lightning.evaluate run=FOLDER``: the test accuracy of a run's final network, again."""

from omegaconf import DictConfig, OmegaConf

from bsq_lightning.cli.config import heavy_imports, plain_errors, read_config, run_command
from bsq_lightning.cli.trust import check_settled, check_targets, trusted_packages


@plain_errors
def evaluate(cfg: DictConfig) -> float:
    """Tests the newest checkpoint of a run folder and compares with its summary."""
    with heavy_imports():
        from bsq_lightning.checkpoint_io import load_checkpoint, load_state
        from bsq_lightning.cli.building.experiment import Experiment
        from bsq_lightning.run_folder import RunFolder

    folder = RunFolder.existing(cfg.run)
    run = read_config(folder.config)
    plain = OmegaConf.to_container(run)
    check_settled(plain, folder.config)
    check_targets(plain, folder.config, trusted_packages(cfg.trust))
    if cfg.data.root is not None:
        run.data.root = cfg.data.root
    if cfg.trainer.accelerator is not None:
        run.trainer.accelerator = cfg.trainer.accelerator
    # Each of several processes would start the others again, and print.
    run.trainer.devices = run.trainer.num_nodes = 1
    run.trainer.strategy = "auto"
    checkpoint = load_checkpoint(folder.last)
    experiment = Experiment(run)
    datamodule = experiment.datamodule()
    network = experiment.first_network(checkpoint["stage"], datamodule.num_classes, restored=True)
    module = experiment.module(network, checkpoint["stage"], datamodule.num_classes)
    load_state(module, checkpoint, folder.last)
    result = experiment.test_trainer().test(module, datamodule, verbose=False)[0]
    accuracy = result["test/acc"]
    recorded = folder.summary()["accuracy"]["final"]["test/acc"] if folder.is_finished else None
    print(f"test accuracy {accuracy!r} (stage {checkpoint['stage']}, epoch {checkpoint['epoch'] + 1})")
    print("the run is not finished: no summary to compare with" if recorded is None else f"summary.json {recorded!r}")
    return accuracy


def main() -> None:
    """Console entry point."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
