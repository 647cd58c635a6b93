"""``python -m bsq_lightning.search target.kilobytes=60``: the largest network inside a budget that works.

Takes everything that train takes. Trainings bracket and bisect the method's knob, share one float stage, and are
stopped when they are hopeless; the best run inside the budget is taken to its end and measured there. One whose output
no longer depends on the image, or that ends at chance, is refused, and the search goes on; where none is left it fails.
``hydra.run.dir=FOLDER`` again goes on.
"""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from bsq_lightning.cli.config import heavy_imports, plain_errors, run_command


@plain_errors
def search(cfg: DictConfig) -> float:
    """Searches the knob, takes the best run to its end and returns its test accuracy."""
    with heavy_imports():
        from bsq_lightning.cli.run.summary_table import print_summary
        from bsq_lightning.cli.search.accident import AccidentError
        from bsq_lightning.cli.search.budget import BudgetSearch
        from bsq_lightning.cli.search.table import print_delivered, print_search
        from bsq_lightning.cli.search.target import Target
        from bsq_lightning.cli.search.trainings import SearchRuns
        from bsq_lightning.cli.settings import check_values
        from bsq_lightning.cli.sweep.launch import told_how_to_go_on
        from bsq_lightning.cli.sweep.next_steps import command_to_go_on
        from bsq_lightning.run_folder import SweepFolder

    check_values(cfg)
    if cfg.preflight == "only":
        raise ValueError("preflight=only is of train: try one value of the knob there, then search without it")
    target = Target(**cfg.target)
    folder = SweepFolder(Path(HydraConfig.get().runtime.output_dir))
    with folder.searching(), told_how_to_go_on(folder):
        runs = SearchRuns(cfg, folder.path, HydraConfig.get())
        scheme, judge = runs.untrained()
        target.check(scheme)
        search = BudgetSearch(
            folder.path, target, target.size(scheme), runs.adjustments, runs.knob, runs.first_value, runs.grows, runs,
            judge, **cfg.search, together=runs.slots.count,
        )  # fmt: skip
        try:
            winner = search.search()
        except (AccidentError, OSError) as accident:  # on a full disk, what befell a training cannot be written either
            print_search(search.trials, search.name, target)
            said = f"{accident}. Go on with: {command_to_go_on(folder)}"
            raise AccidentError(said, getattr(accident, "exit_status", 1)) from accident
        except ValueError:
            print_search(search.trials, search.name, target)
            raise
    print_search(search.trials, search.name, target, winner)
    delivered = search.folder(winner)
    summary = delivered.summary()
    print_summary(delivered, summary)
    print_delivered(winner, search.name, target, summary)
    return summary["accuracy"]["final"]["test/acc"]


def main() -> None:
    """Console entry point."""
    run_command(search, "search")


if __name__ == "__main__":
    main()
