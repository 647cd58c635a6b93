"""The search of a knob against a size, with an exact stand-in for training: size falls as alpha rises."""

import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from bsq_lightning.cli.chance import at_chance
from bsq_lightning.cli.search.accident import AccidentError
from bsq_lightning.cli.search.bracket import Trial, hopeless, next_values
from bsq_lightning.cli.search.budget import BudgetSearch
from bsq_lightning.cli.search.judge import Judge
from bsq_lightning.cli.search.target import Target
from bsq_lightning.module import NonFiniteLossError
from bsq_lightning.run_folder import RunFolder, SweepFolder
from bsq_lightning.scheme import LayerScheme, Scheme
from tests.cli.commands import TINY, run


def size(alpha: float) -> float:
    return 5 + 95 / (1 + 30 * alpha)


class Trainings:
    """Writes what training would leave, adjustment by adjustment, and asks the watch in between. Layer ``a`` holds the
    size; training on after the bits are found multiplies it by ``shrinks``.

    ``guesses`` and ``dies`` say of which sizes the network is at chance in the end, or has a dead path; ``fails``, at
    which alphas its loss breaks down; ``befallen``, what befalls a training, at most once each.
    """

    def __init__(
        self,
        size: Callable[[float], float] = size,
        fails: Callable[[float], bool] = lambda alpha: False,
        guesses: Callable[[float], bool] = lambda kilobytes: False,
        dies: Callable[[float], bool] = lambda kilobytes: False,
        shrinks: float = 1.0,
        befallen: Callable[[RunFolder], bool] = lambda folder: False,
    ) -> None:
        self.size, self.fails, self.guesses, self.dies, self.shrinks = size, fails, guesses, dies, shrinks
        self.befallen = befallen
        self.ran, self.finished = [], []

    def train(self, values: dict[Path, float], watch: Callable[[RunFolder], str | None]) -> dict[Path, bool]:
        ended = {}
        for path, value in values.items():
            self.ran.append(value)
            path.mkdir(exist_ok=True)
            (path / "adjustments.jsonl").unlink(missing_ok=True)
            SweepFolder(path.parent).add_points({path.name: []})
            RunFolder(path).forget_error()
            ended[path] = not self.fails(value)
            if self.fails(value):
                RunFolder(path).record_error(NonFiniteLossError("the loss became NaN"))
            elif self.befallen(RunFolder(path)):
                ended[path] = False
                continue
            for i in range(1, 5):
                self._leave(path, 100 * (self.size(value) / 100) ** (i / 4))
                if watch(RunFolder(path)):
                    break
        return ended

    def finish(self, folder: RunFolder) -> bool:
        folder.forget_error()
        if self.befallen(folder):
            return False
        self.finished.append(folder.path.name)
        at = self.shrinks * self.size(float(folder.path.name.rpartition("=")[2]))
        self._leave(folder.path, at)
        folder.finish({"guesses": self.guesses(at), "accuracy": {"final": {"test/acc": 0.5}}})
        return True

    def best(self, complete: dict[Path, Trial]) -> Path:
        return max(complete, key=lambda path: complete[path].size)

    def of_bits(self, bits: dict[str, int | float]) -> str:
        return "dead path" if bits.get("b") == 0 else ""

    def of_summary(self, summary: dict[str, Any]) -> str:
        return "at chance" if summary["guesses"] else ""

    def _leave(self, path: Path, kilobytes: float) -> None:
        dead = LayerScheme("b", 1, 0 if self.dies(kilobytes) else 1, 0.1, stored=(0, 0, 0))
        layers = (LayerScheme("a", 1, 1, 0.1, stored=(0, round(8000 * kilobytes), 0)), dead)
        RunFolder(path).write_scheme(Scheme(layers).to_json())
        row = {"kilobytes_after": kilobytes, "layers": {"b": {"from": 8, "to": dead.precision}}}
        with open(path / "adjustments.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")


def searching(path: Path, budget: float, trainings: Trainings, **more: Any) -> BudgetSearch:
    arguments = {
        "start": 100.0, "adjustments": 4, "knob": "reg.alpha", "value": 1e-3, "grows": False, "max_runs": 30
    } | more  # fmt: skip
    return BudgetSearch(path, Target(kilobytes=budget), trainings=trainings, judge=trainings, **arguments)


@pytest.mark.parametrize("together", [1, 2, 3])
@pytest.mark.parametrize("budget", [6, 20, 50, 90, 97])
def test_it_ends_within_the_tolerance_below_the_budget(tmp_path: Path, budget: float, together: int) -> None:
    search = searching(tmp_path, budget, Trainings(), together=together)
    best = search.search()
    assert 0.95 * budget <= best.size <= budget
    assert best.size == pytest.approx(size(best.value), abs=1e-3)
    assert not best.stopped
    assert len(search.trials) <= 18


def test_a_stopped_trial_is_on_the_side_its_end_would_be_on(tmp_path: Path) -> None:
    search = searching(tmp_path, 40, Trainings())
    search.search()
    assert any(trial.stopped for trial in search.trials)
    for trial in search.trials:
        assert (trial.size <= 40) == (size(trial.value) <= 40), trial


def test_a_budget_that_the_network_meets_anyway_takes_the_smallest_penalty(tmp_path: Path) -> None:
    best = searching(tmp_path, 500, Trainings()).search()
    assert best.size >= 95


def test_failing_runs_bound_alpha_and_are_never_chosen(tmp_path: Path) -> None:
    search = searching(tmp_path, 50, Trainings(fails=lambda alpha: alpha > 0.04))
    best = search.search()
    assert best.value <= 0.04 and 0.95 * 50 <= best.size <= 50


ACCIDENTS: dict[str, tuple[BaseException | str | None, int, str]] = {
    "preempted": (None, 75, "was stopped from outside"),  # SIGTERM, Ctrl-C: no error is recorded
    "another process is there": (None, 75, "is being trained by another process"),
    "out of memory": ("killed by signal 9; it last said: epoch 3", 1, "learns nothing: killed by signal 9"),
    "no space": (OSError(28, "No space left on device"), 1, "learns nothing: .*No space left"),
}


@pytest.mark.parametrize("at", ["bits", "end"])
@pytest.mark.parametrize("what", ACCIDENTS)
def test_an_accident_is_no_trial_and_the_search_goes_on_as_if_it_had_not_been(
    tmp_path: Path, what: str, at: str
) -> None:
    """Whichever training it befalls, and again at every start: the trials and what is delivered stay the same."""
    for name in ("whole", "befallen"):
        (tmp_path / name).mkdir()
    undisturbed = searching(tmp_path / "whole", 30, Trainings())
    expected = undisturbed.search()
    error, status, said = ACCIDENTS[what]
    befallen: set[Path] = set()

    def befalls(folder: RunFolder) -> bool:
        at_end = folder.scheme_file.exists()
        if folder.path in befallen or at_end != (at == "end"):
            return False
        befallen.add(folder.path)
        if error is not None:
            folder.record_error(error)
        return True

    folder, trainings = tmp_path / "befallen", Trainings(befallen=befalls)
    for _ in range(len(undisturbed.trials) + 1):
        search = searching(folder, 30, trainings)
        with ExitStack() as others:
            if what == "another process is there":
                for path in [folder / f"alpha={value:g}" for value in [t.value for t in undisturbed.trials]]:
                    path.mkdir(exist_ok=True)
                    others.enter_context(RunFolder(path).running())
            try:
                assert search.search() == expected
                break
            except AccidentError as accident:
                assert accident.exit_status == status and re.search(said, str(accident))
                assert not any(trial.failed for trial in search.trials)
    else:
        pytest.fail("it never came to its end")
    assert search.trials == undisturbed.trials
    assert len(befallen) == (len(undisturbed.trials) if at == "bits" else 1)


def test_of_trials_together_those_that_ended_are_kept_and_what_must_be_mended_is_said(tmp_path: Path) -> None:
    def befalls(folder: RunFolder) -> bool:
        if folder.path.name == "alpha=0.016":
            folder.record_error(OSError(28, "No space left on device"))
        return folder.path.name != "alpha=0.001"

    search = searching(tmp_path, 30, Trainings(befallen=befalls), together=3)
    with pytest.raises(AccidentError, match="0.016 failed, not by its network") as caught:
        search.search()
    assert caught.value.exit_status == 1
    record = json.loads((tmp_path / "search.json").read_text())
    assert [trial["value"] for trial in record["trials"]] == [0.001]


def test_accidents_that_an_earlier_version_recorded_as_failures_are_tried_again(tmp_path: Path) -> None:
    trials = [Trial(0.001, 100.0, failed="failed"), Trial(0.004, 100.0, failed="the loss became NaN")]
    (tmp_path / "alpha=0.004").mkdir()
    RunFolder(tmp_path / "alpha=0.004").record_error(NonFiniteLossError("the loss became NaN"))
    content = {"target": asdict(Target(kilobytes=30)), "knob": "reg.alpha", "trials": [asdict(t) for t in trials]}
    (tmp_path / "search.json").write_text(json.dumps(content))
    SweepFolder(tmp_path).add_points({"alpha=0.001": [], "alpha=0.004": []})
    search = searching(tmp_path, 30, Trainings())
    assert search.trials == trials[1:]
    with suppress(ValueError):
        search.search()
    assert 0.001 in [trial.value for trial in search.trials[1:]]


def test_where_nothing_is_left_it_says_why_of_each(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\(failed: alpha=0.001, the loss became NaN; failed: .*\): give a larger"):
        searching(tmp_path, 50, Trainings(fails=lambda alpha: True), max_runs=2).search()
    (tmp_path / "large").mkdir()
    with pytest.raises(ValueError, match=r"\(the smallest has \d"):
        searching(tmp_path / "large", 6, Trainings(), max_runs=1).search()


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
        def train(self, values: dict[Path, float], watch: Any) -> dict[Path, bool]:
            if len(self.ran) == killed_after:
                SweepFolder(tmp_path / "killed").add_points({path.name: [] for path in values})
                raise Killed
            return super().train(values, watch)

    first, second = Dying(), Trainings()
    with pytest.raises(Killed):
        searching(tmp_path / "killed", 30, first).search()
    again = searching(tmp_path / "killed", 30, second)
    assert again.search() == expected
    assert not set(first.ran) & set(second.ran)
    assert first.ran + second.ran == [trial.value for trial in whole.trials]
    with pytest.raises(ValueError, match="another target"):
        searching(tmp_path / "killed", 31, second)


@pytest.mark.parametrize("budget", [6, 20, 50, 90])
def test_a_knob_that_the_size_grows_with_is_searched_the_other_way_round(tmp_path: Path, budget: float) -> None:
    (tmp_path / "falls").mkdir()
    (tmp_path / "grows").mkdir()
    falls = searching(tmp_path / "falls", budget, Trainings())
    grows = searching(
        tmp_path / "grows",
        budget,
        Trainings(size=lambda bits: size(1 / bits)),
        grows=True,
        value=1e3,
        knob="quant.bits",
    )
    best = grows.search()
    assert 0.95 * budget <= best.size <= budget
    assert 1 / best.value == pytest.approx(falls.search().value, rel=0.03)
    assert (tmp_path / "grows" / f"bits={best.value:g}").is_dir()


def test_what_is_delivered_is_inside_the_budget_and_works(tmp_path: Path) -> None:
    """Laws over networks that break at some size: nothing broken is delivered, and the largest that works is found."""
    # Of those that come inside 44 kB, only these work.
    breaks = lambda kilobytes: not 30 <= kilobytes <= 40 and kilobytes < 45  # noqa: E731
    for name, trainings in {"guesses": Trainings(guesses=breaks), "dies": Trainings(dies=breaks)}.items():
        path = tmp_path / name
        path.mkdir()
        search = searching(path, 44, trainings)
        best = search.search()
        assert 30 <= best.size <= 40 and best.finished and best.alive
        assert json.loads((path / "search.json").read_text())["winner"] == best.value
        refused = [trial for trial in search.trials if trial.refused]
        assert refused and all(not 30 <= trial.size <= 40 for trial in refused)


def test_a_dead_path_stops_a_trial_at_the_adjustment_that_makes_it(tmp_path: Path) -> None:
    trainings = Trainings(dies=lambda kilobytes: kilobytes < 80)
    with pytest.raises(ValueError, match="as a network that works.*dead path"):
        searching(tmp_path, 50, trainings, max_runs=6).search()
    assert not trainings.finished
    for folder in tmp_path.glob("alpha=*"):
        bits = [row["layers"]["b"]["to"] for row in RunFolder(folder).adjustments()]
        assert 0 not in bits[:-1]


def test_sizes_are_those_at_the_end_not_where_the_search_looked(tmp_path: Path) -> None:
    """The network goes on shrinking behind the stage that finds the bits; the table tells what lies in the folder."""
    search = searching(tmp_path, 60, Trainings(shrinks=0.25))
    best = search.search()
    assert best.size == pytest.approx(size(best.value) / 4, abs=1e-3)


def test_one_that_was_stopped_is_delivered_only_after_it_was_trained_to_its_end(tmp_path: Path) -> None:
    """Where all that came inside were stopped as too small, the largest of them is completed, and judged."""
    trainings = Trainings(size=lambda alpha: 90 if alpha < 0.01 else 3)
    best = searching(tmp_path, 60, trainings, max_runs=4).search()
    assert best.finished and not best.stopped and best.size == 3 and len(trainings.finished) == 1
    broken = Trainings(size=trainings.size, guesses=lambda kilobytes: True)
    (tmp_path / "b").mkdir()
    with pytest.raises(ValueError, match="refused: alpha=.* at chance"):
        searching(tmp_path / "b", 60, broken, max_runs=4).search()


def test_a_record_of_an_earlier_version_is_read_and_one_of_another_knob_refused(tmp_path: Path) -> None:
    first = searching(tmp_path, 30, Trainings())
    expected = first.search()
    record = json.loads((tmp_path / "search.json").read_text())
    old = {
        "target": record["target"],
        "trials": [
            {"alpha": t["value"], "size": t["size"], "stopped": t["stopped"], "failed": ""} for t in record["trials"]
        ],
        "winner": record["winner"],
    }
    (tmp_path / "search.json").write_text(json.dumps(old))
    again = Trainings()
    assert searching(tmp_path, 30, again).search() == expected and not again.ran
    with pytest.raises(ValueError, match="a search of reg.alpha, not of quant.bits"):
        searching(tmp_path, 30, Trainings(), knob="quant.bits")
    (tmp_path / "search.json").write_text(json.dumps({"trials": [{"size": 3}]}))
    with pytest.raises(ValueError, match="is not the record of a search"):
        searching(tmp_path, 30, Trainings())


def test_chance_is_what_guessing_gives() -> None:
    """Against the binomial by hand: the smallest count that guessing reaches less than once in a thousand."""
    for images, classes in ((120, 4), (300, 10), (50, 100)):
        share = [math.comb(images, k) * (classes - 1) ** (images - k) / classes**images for k in range(images + 1)]
        least = next(k for k in range(images + 1) if sum(share[k:]) < 1e-3)
        assert at_chance((least - 1) / images, images, classes) and not at_chance(least / images, images, classes)


def test_chance_is_counted_on_the_images_that_were_tested(tmp_path: Path) -> None:
    """``trainer.limit_test_batches`` leaves most out, and of all images that accuracy would look like knowledge."""
    tiny = [o for o in TINY if not o.startswith(("stages.bits", "stages.fine", "reg.", "data.limit"))]
    limits = ["data.limit_train=64", "data.eval_batch_size=16", "trainer.limit_test_batches=2"]
    code, output = run("train", *tiny, "quant=none", "reg=none", *limits, f"hydra.run.dir={tmp_path}")
    assert code == 0, output
    summary = RunFolder(tmp_path).summary()
    assert summary["data"]["test"] == 2 * 16
    right = 32 * summary["accuracy"]["final"]["test/acc"]
    assert right == pytest.approx(round(right), abs=1e-4)
    assert at_chance(7 / 32, 32, 10) and not at_chance(7 / 32, 360, 10)
    summary["accuracy"]["final"]["test/acc"] = 7 / 32
    assert "21.88 % of 32 test images" in Judge(nn.Identity(), 16).of_summary(summary)


def test_hopeless_never_stops_a_run_that_keeps_its_fastest_pace() -> None:
    sizes = [100.0, 80.0, 50.0]
    pace = 50 / 80
    assert not hopeless(sizes, 4, 50 * pace**2 + 0.1, 0)
    assert "too large" in hopeless(sizes, 4, 50 * pace**2 - 0.1, 0)
    assert not hopeless([100.0, 99.0], 1, 1, 0), "it has ended already"


def test_values_stay_inside_the_bracket() -> None:
    trials = [Trial(1e-3, 90), Trial(1e-1, 30), Trial(1e-2, 55)]
    assert next_values(trials, 60, 1e-3, 4, 3) == [1.78e-3, 3.16e-3, 5.62e-3]
    # noise: a larger alpha ended too large, below it another is inside
    assert all(a < 1e-2 for a in next_values([*trials, Trial(5e-2, 70)], 60, 1e-3, 4, 2))


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
