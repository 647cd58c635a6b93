"""What a sweeper is told of a run."""

import sys
from pathlib import Path

import pytest

from bsq_lightning.cli.objective import FIGURES, check_objective, objective
from bsq_lightning.cli.sweep.status import point_states
from bsq_lightning.run_folder import RunFolder, SweepFolder
from tests.cli.commands import TINY, run
from tests.test_conf import composed


def test_the_default_is_validation_accuracy_and_size() -> None:
    assert list(composed().objective) == ["accuracy.final.val/acc", "sizes.model.bits"]
    check_objective(composed("data.val_split=0.1"))


def test_figures_are_places_of_a_summary() -> None:
    summary = {
        "accuracy": {"final": {"val/acc": 0.9, "test/acc": 0.8}, "float": None},
        "sizes": {"model": {"bits": 100, "compression": None}},
        "mean_precision": 2.5,
    }
    found = {name: objective(name, summary) for name in FIGURES}
    assert {name: value for name, value in found.items() if value is not None} == {
        "accuracy.final.val/acc": 0.9, "accuracy.final.test/acc": 0.8, "sizes.model.bits": 100, "mean_precision": 2.5,
    }  # fmt: skip
    assert objective(["mean_precision", "sizes.model.bits"], summary) == [2.5, 100]
    assert objective(["mean_precision", "gbops"], summary) is None
    assert objective(None, summary) is None and objective([], summary) is None


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["objective=[accuracy]"], r"not \['accuracy'\]"),
        (["objective=[]"], "not empty"),
        (["data.val_split=0"], "data.val_split=0 holds none back"),
    ],
)
def test_what_no_run_would_have_is_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_objective(composed(*overrides))


@pytest.mark.slow
@pytest.mark.skipif(sys.version_info >= (3, 14), reason="no Hydra there")
def test_optuna_searches_for_both_and_goes_on_after_a_trial_that_fails(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    asked = [
        "-m", *TINY, "reg.alpha=1", "stages.float.epochs=6",
        "hydra/sweeper=optuna", "hydra.sweeper.n_trials=3", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.sampler.seed=1",
        "stages.bits.optimizer.lr=choice(0.1,1e30)", f"hydra.sweep.dir={tmp_path}",
    ]  # fmt: skip
    code, output = run("train", *asked, "hydra.sweeper.max_failure_rate=1")
    assert code == 0, output
    assert point_states(SweepFolder(tmp_path)) == {  # with this seed the first two trials are the one that fails
        "stages.bits.optimizer.lr=1e+30": "failed",
        "stages.bits.optimizer.lr=0.1": "done",
    }
    assert "Failed experiment: stages.bits.optimizer.lr=1e+30 failed: the loss became NaN" in output
    assert output.count("1 done, 1 failed") == 1 and "Traceback" not in output
    assert len(list((tmp_path / "float").iterdir())) == 1
    results = (tmp_path / "optimization_results.yaml").read_text()
    summary = RunFolder(tmp_path / "stages.bits.optimizer.lr=0.1").summary()
    assert str(summary["sizes"]["model"]["bits"]) in results, results
    code, output = run("train", *asked)
    assert code == 1 and "hydra.sweeper.max_failure_rate=1 lets the study go on" in output
    assert "Traceback" not in output
