"""What a sweeper is told of a run."""

import json
import sys
from pathlib import Path

import pytest

from bsq_lightning.cli.objective import FIGURES, check_objective, objective
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
def test_optuna_searches_for_both(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    tiny = [override for override in TINY if not override.startswith("reg.alpha")]
    asked = [
        "-m", *tiny, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2", "hydra.sweeper.n_jobs=1",
        "hydra.sweeper.direction=[maximize,minimize]", "hydra.sweeper.sampler.seed=1",
        "reg.alpha=interval(1,30)", f"hydra.sweep.dir={tmp_path}",
        "hydra.sweep.subdir=trial-${hydra.job.num}",
    ]  # fmt: skip
    code, output = run("train", *asked)
    assert code == 0, output
    results = (tmp_path / "optimization_results.yaml").read_text()
    summaries = [json.loads(path.read_text()) for path in tmp_path.glob("*/summary.json")]
    assert len(summaries) == 2
    assert any(str(summary["sizes"]["model"]["bits"]) in results for summary in summaries), results
