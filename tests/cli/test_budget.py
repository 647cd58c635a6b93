"""The search of alpha against a size, with an exact stand-in for training: size falls as alpha rises."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from bsq_lightning.cli.search.bracket import Trial, hopeless, inside, next_alphas
from bsq_lightning.cli.search.budget import BudgetSearch, Target
from bsq_lightning.run_folder import RunFolder, SweepFolder
from bsq_lightning.scheme import LayerScheme, Scheme


def size(alpha: float) -> float:
    return 5 + 95 / (1 + 30 * alpha)


class Trainings:
    """Writes what a bits stage would leave, adjustment by adjustment, and asks the watch in between."""

    def __init__(self, size: Callable[[float], float] = size, fails: Callable[[float], bool] = lambda a: False) -> None:
        self.size, self.fails, self.ran = size, fails, []

    def __call__(self, alphas: dict[Path, float], watch: Callable[[RunFolder], str | None]) -> dict[Path, bool]:
        ended = {}
        for path, alpha in alphas.items():
            self.ran.append(alpha)
            path.mkdir(exist_ok=True)
            (path / "adjustments.jsonl").unlink(missing_ok=True)
            SweepFolder(path.parent).add_points({path.name: []})
            ended[path] = not self.fails(alpha)
            for i in range(1, 5):
                at = 100 * (self.size(alpha) / 100) ** (i / 4)
                with open(path / "adjustments.jsonl", "a") as file:
                    file.write(json.dumps({"kilobytes_after": at}) + "\n")
                if watch(RunFolder(path)):
                    break
        return ended


def searching(path: Path, budget: float, trainings: Trainings, **more: Any) -> BudgetSearch:
    arguments = {"start": 100.0, "adjustments": 4, "alpha": 1e-3, "max_runs": 30} | more
    return BudgetSearch(path, Target(kilobytes=budget), train=trainings, **arguments)


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("budget", [6, 20, 50, 90, 97])
def test_it_ends_within_the_tolerance_below_the_budget(tmp_path: Path, budget: float, together: int) -> None:
    search = searching(tmp_path, budget, Trainings(), together=together)
    best = search.search()[0]
    assert 0.95 * budget <= best.size <= budget
    assert best.size == pytest.approx(size(best.alpha))
    assert not best.stopped
    assert len(search.trials) <= 18


def test_a_stopped_trial_is_on_the_side_its_end_would_be_on(tmp_path: Path) -> None:
    search = searching(tmp_path, 40, Trainings())
    search.search()
    assert any(trial.stopped for trial in search.trials)
    for trial in search.trials:
        assert inside(trial, 40) == (size(trial.alpha) <= 40), trial


def test_a_budget_that_the_network_meets_anyway_takes_the_smallest_penalty(tmp_path: Path) -> None:
    best = searching(tmp_path, 500, Trainings()).search()[0]
    assert best.size >= 95


def test_failing_runs_bound_alpha_and_are_never_chosen(tmp_path: Path) -> None:
    search = searching(tmp_path, 50, Trainings(fails=lambda alpha: alpha > 0.04))
    best = search.search()[0]
    assert best.alpha <= 0.04 and 0.95 * 50 <= best.size <= 50


def test_out_of_runs_says_how_far_it_came(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run of 2 came inside 6 kB.*raise search.max_runs"):
        searching(tmp_path, 6, Trainings(), max_runs=2).search()


@pytest.mark.parametrize("killed_after", [1, 2, 4])
def test_a_search_that_is_started_again_repeats_nothing_and_finds_the_same(tmp_path: Path, killed_after: int) -> None:
    whole = searching(tmp_path / "whole", 30, Trainings())
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    expected = whole.search()

    class Killed(Exception):
        pass

    class Dying(Trainings):
        def __call__(self, alphas: dict[Path, float], watch: Any) -> dict[Path, bool]:
            if len(self.ran) == killed_after:
                SweepFolder(tmp_path / "killed").add_points({path.name: [] for path in alphas})
                raise Killed
            return super().__call__(alphas, watch)

    first, second = Dying(), Trainings()
    with pytest.raises(Killed):
        searching(tmp_path / "killed", 30, first).search()
    again = searching(tmp_path / "killed", 30, second)
    assert again.search() == expected
    assert not set(first.ran) & set(second.ran)
    assert first.ran + second.ran == [trial.alpha for trial in whole.trials]
    with pytest.raises(ValueError, match="another target"):
        searching(tmp_path / "killed", 31, second)


def test_hopeless_never_stops_a_run_that_keeps_its_fastest_pace() -> None:
    sizes = [100.0, 80.0, 50.0]
    pace = 50 / 80
    assert not hopeless(sizes, 4, 50 * pace**2 + 0.1, 0)
    assert "too large" in hopeless(sizes, 4, 50 * pace**2 - 0.1, 0)
    assert not hopeless([100.0, 99.0], 1, 1, 0), "it has ended already"


def test_alphas_stay_inside_the_bracket() -> None:
    trials = [Trial(1e-3, 90), Trial(1e-1, 30), Trial(1e-2, 55)]
    assert next_alphas(trials, 60, 1e-3, 4, 3) == [1.78e-3, 3.16e-3, 5.62e-3]
    # noise: a larger alpha ended too large, below it another is inside
    assert all(a < 1e-2 for a in next_alphas([*trials, Trial(5e-2, 70)], 60, 1e-3, 4, 2))


@pytest.mark.parametrize("given", [{}, {"kilobytes": 1, "gbops": 2}, {"kilobytes": 0}, {"gbops": math.inf}])
def test_one_positive_target(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="target"):
        Target(**given)


def test_sizes_in_each_unit() -> None:
    scheme = Scheme((LayerScheme("a", 800, 3, 0.1, macs=1000), LayerScheme("b", 200, 0, 0.0, macs=50)), 10, 4, 7)
    assert Target(kilobytes=1).size(scheme) == (800 * 4 + 32 * 12) / 8000
    assert Target(mean_bits=1).size(scheme) == 2.4
    assert Target(gbops=1).size(scheme) == (1000 * 4 * 8 + 0 + 7 * 1024) / 1e9
    assert Scheme.from_json(scheme.to_json()) == scheme
    assert {layer.precision for layer in scheme.at(2).layers} == {2}
    assert asdict(Target(gbops=1))["gbops"] == 1
