"""``python -m bsq_lightning.evaluate run=FOLDER``: the test accuracy of a run's final network, again."""

from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command


@plain_errors
def evaluate(cfg: DictConfig) -> float:
    """Tests the newest checkpoint of a run folder and compares with its summary."""
    with heavy_imports():
        from bsq_lightning.cli.run.opening import open_run
        from bsq_lightning.cli.settings import check_values
        from bsq_lightning.cli.settings.groups import Evaluate

    check_values(cfg, Evaluate)
    opened = open_run(cfg.run, cfg.trust, cfg.data.root, cfg.trainer.accelerator)
    result = opened.experiment.test_trainer().test(opened.module, opened.datamodule, verbose=False)[0]
    accuracy, recorded = result["test/acc"], opened.accuracy
    print(f"test accuracy {accuracy!r} (stage {opened.stage}, epoch {opened.epoch})")
    print("the run is not finished: no summary to compare with" if recorded is None else f"summary.json {recorded!r}")
    return accuracy


def main() -> None:
    """Console entry point."""
    run_command(evaluate, "evaluate")


if __name__ == "__main__":
    main()
