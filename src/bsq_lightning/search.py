"""``python -m bsq_lightning.search target.kilobytes=60``: the largest network inside a budget; alpha is found.

Takes everything that train takes. Bit-plane trainings bracket and bisect alpha, share one float stage, and are stopped
when they are hopeless; the best run inside the budget is fine-tuned. ``hydra.run.dir=FOLDER`` again goes on.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command


@plain_errors
def search(cfg: DictConfig) -> float:
    """Searches alpha, fine-tunes the winner and returns its test accuracy."""
    with heavy_imports():
        from bsq_lightning.cli.run.summary_table import print_summary
        from bsq_lightning.cli.search.budget import BudgetSearch, Target
        from bsq_lightning.cli.search.table import print_search
        from bsq_lightning.cli.search.trainings import SearchRuns
        from bsq_lightning.run_folder import RunFolder

    target = Target(**cfg.target)
    path = Path(HydraConfig.get().runtime.output_dir)
    runs = SearchRuns(cfg, path, HydraConfig.get())
    search = BudgetSearch(
        path, target, runs.start_size(target), runs.adjustments, runs.first_value, runs.train, **cfg.search,
        together=runs.slots.count,
    )  # fmt: skip
    found = search.search()
    winner = runs.choose(search, found)
    search.record(winner=winner.alpha)
    runs.finish(search.folder(winner.alpha))
    folder = RunFolder(search.folder(winner.alpha).path)
    summary = folder.summary()
    print_summary(folder, summary)
    print_search(search.trials, target, winner)
    return summary["accuracy"]["final"]["test/acc"]


def main() -> None:
    """Console entry point."""
    run_command(search, "search")


if __name__ == "__main__":
    main()
