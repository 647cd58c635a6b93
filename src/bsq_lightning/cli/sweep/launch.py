"""What Hydra's launcher does with the points of a multirun: compose, check, share float stages, run, sum up."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from bsq_lightning.callbacks.preemption import name_of
from bsq_lightning.cli.building.checks import check_constructors
from bsq_lightning.cli.building.post_training import begun_from
from bsq_lightning.cli.building.stage import FLOAT, planned_stages, stage_settings
from bsq_lightning.cli.chance import chance_of
from bsq_lightning.cli.config import CONF_DIR, read_config
from bsq_lightning.cli.objective import check_objective
from bsq_lightning.cli.settled import check_same, float_part, settled_config
from bsq_lightning.cli.sweep.next_steps import command_to_go_on, print_next
from bsq_lightning.cli.sweep.points import Slots, float_command, run_points, train_command
from bsq_lightning.cli.sweep.progress import Progress
from bsq_lightning.cli.sweep.status import print_status
from bsq_lightning.cli.trust import own_packages
from bsq_lightning.run_folder import InUseError, RunFolder, SweepFolder

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Point:
    """A point of a multirun, composed and checked.

    Args:
        cfg: its settled config.
        folder: its run folder.
        overrides: what was asked for.
        launcher: its ``hydra.launcher``, resolved: what the point says of devices is what a cluster is asked for.
    """

    cfg: DictConfig
    folder: RunFolder
    overrides: list[str]
    launcher: dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """What is left to train of a multirun.

    Args:
        sweep: its folder.
        points: all its points, in the order that was asked for.
        commands: the command of each point to train, by run folder, in that order.
        floats: the command of each float stage to train first, for several points.
        uses: the shared float stage of a point, by run folder, trained already or one of ``floats``.
    """

    sweep: SweepFolder
    points: list[Point]
    commands: dict[Path, list[str]]
    floats: dict[Path, list[str]]
    uses: dict[Path, Path]

    def epochs(self) -> dict[Path, dict[str, int]]:
        """Epochs of each run to train, by stage; those of a shared float stage are its own."""
        found: dict[Path, dict[str, int]] = {}
        for point in self.points:
            path = point.folder.path
            stages = planned_stages(point.cfg)
            if point.cfg.until in stages:
                stages = stages[: stages.index(point.cfg.until) + 1]
            epochs = {stage: stage_settings(point.cfg, stage).epochs or 0 for stage in stages}
            if path in self.uses and self.uses[path] in self.floats:
                found[self.uses[path]] = {FLOAT: epochs[FLOAT]}
            if path in self.commands:
                found[path] = {s: n for s, n in epochs.items() if s != FLOAT or path not in self.uses}
        return found

    def __str__(self) -> str:
        shared = f"{len(set(self.uses.values()))} float stages shared by {len(self.uses)} points"
        return f"{len(self.points)} points, {len(self.commands)} to run; {shared}; folder {self.sweep.path}"


def launch_points(
    config: DictConfig,
    loader: Any,
    jobs: Sequence[Sequence[str]],
    first: int,
    train: Callable[[Plan], None],
    elsewhere: bool = False,
    announce: Callable[[list[Point]], None] = lambda points: None,
) -> list[tuple[Point, int]]:
    """Trains the points of a multirun that are not done yet; returns all of them, each with an exit status: 0 where it
    is done, 1 where it failed, 75 where it was stopped or another process trains it.

    With ``preflight=only`` each point is checked in a folder that is gone afterwards.

    Every point is composed and its constructors run before the first one trains. Runs that differ only after their
    float stage train it once, in ``SWEEP/float/``.

    Args:
        config: the multirun's own config, with its ``hydra`` node.
        loader: Hydra's config loader.
        jobs: overrides of each point.
        first: number of the first point.
        train: what carries out the plan, here or on a cluster.
        elsewhere: whether it trains on other hosts: a login node lacks the accelerator of the others.
        announce: shows what would be asked for there, after ``preflight=only``.

    Raises:
        ValueError: a point cannot be composed or built, or its folder holds another run; nothing was trained.
    """
    sweep = SweepFolder(Path(str(config.hydra.sweep.dir)).absolute())
    composed = [_compose(config, loader, jobs, i, first, sweep) for i in range(len(jobs))]
    if len({point.folder.path for point in composed}) < len(composed):
        raise ValueError("two points of the sweep have one folder: hydra.sweep.subdir must tell them apart")
    seen: dict[str, Any] = {}
    points: list[Point] = []
    for point in composed:
        try:
            if _is_ptq(point):
                point = replace(point, cfg=begun_from(point.cfg, point.overrides))
            here = {"accelerator": "auto"} if elsewhere and point.cfg.trainer.accelerator != "cpu" else {}
            if learns(config):
                check_objective(point.cfg)
            tried = cast(DictConfig, OmegaConf.merge(point.cfg, {"trainer": here}))
            check_constructors(tried, seen, point.overrides, elsewhere)
            kept = read_config(point.folder.config) if point.folder.config.exists() else None
            settled = settled_config(point.cfg, kept)
            if kept is not None:
                check_same(settled, kept, point.folder)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"point {' '.join(point.overrides)}: {error}. No point was started.") from error
        points.append(replace(point, cfg=settled))
    arguments = hydra_arguments(config.hydra)
    if any(point.cfg.preflight == "only" for point in points):
        try:
            checked = check_only(points, arguments, partial(train_here, slots=Slots()) if elsewhere else train)
            announce(points)
            return checked
        finally:
            _forget(sweep)
    sweep.add_points({str(p.folder.path.relative_to(sweep.path)): p.overrides for p in points})
    train(_plan(points, sweep, arguments, share=learns(config)))
    if first + len(jobs) >= config.hydra.sweeper.get("n_trials", 0):  # a study has a batch after the other
        print_status(sweep)
        print_next(sweep)
    return [(point, _exit_status(point)) for point in points]


def learns(config: DictConfig) -> bool:
    """Whether the sweeper of a multirun chooses its points by the results of earlier ones."""
    return not str(config.hydra.sweeper["_target_"]).endswith(".BasicSweeper")


def failure_of(point: Point, status: int, config: DictConfig) -> ChildProcessError | None:
    """What a sweeper that learns is told of a point that failed, and shows. So is one whose network guesses: nothing is
    smaller than a network without a bit, and a sweeper that is asked for small ones would look for no other."""
    if status == 1:
        message = f"{point.folder.path.name} failed: {(point.folder.error() or {}).get('message')}"
    elif point.folder.is_finished and (guesses := chance_of(point.folder.summary())):
        message = f"{point.folder.path.name} is {guesses}"
    else:
        return None
    if config.hydra.sweeper.get("max_failure_rate", 1) < 1:
        message += ". hydra.sweeper.max_failure_rate=1 lets the study go on with the next trial"
    return ChildProcessError(message)


def _exit_status(point: Point) -> int:
    if point.folder.is_finished or point.cfg.until in point.folder.results():
        return 0
    return 1 if point.folder.state == "failed" else InUseError.exit_status


def check_only(points: list[Point], arguments: list[str], train: Callable[[Plan], None]) -> list[tuple[Point, int]]:
    """The preflight of every point, none of which shares a float stage that nobody has trained; shows what they say."""
    with TemporaryDirectory(prefix="bsq_preflight_") as temporary:
        sweep = SweepFolder(Path(temporary))
        tried = [replace(p, folder=RunFolder(sweep.path / p.folder.path.name)) for p in points]
        commands = {p.folder.path: train_command(p.folder.path, p.overrides, arguments) for p in tried}
        train(Plan(sweep, tried, commands, {}, {}))
        for point in tried:
            print(f"\n{point.folder.path.name}\n{point.folder.output_log.read_text(errors='replace').rstrip()}")
        return [(point, int(point.folder.error() is not None)) for point in tried]


def _forget(sweep: SweepFolder) -> None:
    """Removes a sweep's folder, and those above it that hold nothing else, if Hydra alone has written into it."""
    if sweep.path.is_dir() and [path.name for path in sweep.path.iterdir()] == ["multirun.yaml"]:
        (sweep.path / "multirun.yaml").unlink()
        with suppress(OSError):
            for folder in (sweep.path, *sweep.path.parents):
                if folder == Path.cwd():
                    break
                folder.rmdir()


def _is_ptq(point: Point) -> bool:
    """Whether a point quantizes without training: it then begins with weights that are there."""
    return bool(point.cfg.get("ptq"))


def _plan(points: list[Point], sweep: SweepFolder, arguments: list[str], share: bool) -> Plan:
    """What is left to train; with ``share`` a point alone shares its float stage with those that are to come."""
    shared: dict[Path, list[Point]] = {}
    todo = [point for point in points if point.folder.state not in ("done", "running")]
    for point in todo:
        stages = planned_stages(point.cfg)
        own = stages[0] != FLOAT or len(stages) == 1 or point.cfg.float_stage or point.folder.last.exists()
        if not own:
            shared.setdefault(_float_folder(point.cfg, sweep), []).append(point)
    shared = {path: users for path, users in shared.items() if share or len(users) > 1 or path.exists()}
    uses = {point.folder.path: path for path, users in shared.items() for point in users}
    commands = {}
    for point in todo:
        taken = [f"float_stage='{uses[point.folder.path]}'"] if point.folder.path in uses else []
        commands[point.folder.path] = train_command(
            point.folder.path, [*point.overrides, *taken], arguments, "ptq" if _is_ptq(point) else "train"
        )
    floats = {
        path: float_command(path, users[0].overrides, arguments, own_packages(OmegaConf.to_container(users[0].cfg)))
        for path, users in shared.items()
        if FLOAT not in RunFolder(path).results()
    }
    return Plan(sweep, points, commands, floats, uses)


def train_here(plan: Plan, slots: Slots) -> None:
    """Trains on this machine, each point in a process of its own."""
    for point in plan.points:
        if point.folder.state == "running":
            log.warning("%s is being trained by another process and left to it", point.folder.path.name)
    log.info("%s; %d at a time, %s threads each", plan, slots.count, slots.environment(0)["OMP_NUM_THREADS"])
    progress = Progress(plan.epochs())
    progress.begin()
    with told_how_to_go_on(plan.sweep), closing(progress):
        _train(plan, slots, progress)


@contextmanager
def told_how_to_go_on(sweep: SweepFolder) -> Iterator[None]:
    """When a signal ends the block, says by which one and what to type."""
    try:
        yield
    except SystemExit as stop:
        by = name_of(stop.code - 128) if isinstance(stop.code, int) and stop.code > 128 else "a signal"
        log.warning("stopped by %s; go on with: %s", by, command_to_go_on(sweep))
        raise


def _train(plan: Plan, slots: Slots, progress: Progress) -> None:
    trained = run_points(plan.floats, slots, plan.sweep.path.name, progress=progress, wait=True)
    commands = dict(plan.commands)
    for path, float_folder in plan.uses.items():
        if not trained.get(float_folder, True):
            if RunFolder(float_folder).state == "failed":  # else it was stopped, and goes on at the next start
                RunFolder(path).record_error(f"its float stage failed, see {float_folder / 'error.json'}")
            del commands[path]
    run_points(commands, slots, plan.sweep.path.name, progress=progress)


def _compose(
    config: DictConfig, loader: Any, jobs: Sequence[Sequence[str]], i: int, first: int, sweep: SweepFolder
) -> Point:
    # What all points have in common is left out of the names of their folders.
    common = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    if learns(config):  # it does not know those that are to come: what was asked for as one value is common to all
        params = config.hydra.sweeper.get("params") or {}
        asked = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in params.items())]
        common = set(jobs[i]) & {each if "=" in each else f"{each}=null" for each in asked}  # as Optuna has ~KEY
    excluded = {override.partition("=")[0].lstrip("+~") for override in common}
    excluded |= set(config.hydra.job.config.override_dirname.exclude_keys)
    keys = ",".join(f"'{key}'" for key in sorted(excluded))
    cfg = loader.load_sweep_config(
        config, [*jobs[i], f"hydra.job.config.override_dirname.exclude_keys=[{keys}]", "hydra.mode=RUN"]
    )
    with open_dict(cfg):
        cfg.hydra.job.num = first + i
        cfg.hydra.job.id = str(first + i)
        name = str(cfg.hydra.sweep.subdir)
        if max(len(part.encode()) for part in name.split("/")) > 255:
            raise ValueError(f"no folder can have the name {name!r}: give a shorter one, hydra.sweep.subdir=NAME")
        folder = RunFolder(sweep.path / name)
        launcher: Any = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
        del cfg["hydra"]
    return Point(cfg, folder, list(jobs[i]), launcher)


def slots_of(number: int | None, threads: int | None, devices: Any) -> Slots:
    """The slots of this machine for points that each train on ``trainer.devices``."""
    gpus = visible_gpus()
    return Slots(number, threads, gpus, devices if isinstance(devices, int) and devices > 0 else max(1, len(gpus)))


def visible_gpus() -> tuple[str, ...]:
    """Ids of the GPUs that this process may use."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(filter(None, named.split(","))) if named else tuple(map(str, range(torch.cuda.device_count())))


def _float_folder(cfg: DictConfig, sweep: SweepFolder) -> Path:
    key = hashlib.sha256(json.dumps(float_part(cfg), sort_keys=True).encode()).hexdigest()[:8]
    return sweep.float_stages / f"{cfg.model['_target_'].rpartition('.')[2]}-seed{cfg.seed}-{key}"


def hydra_arguments(hydra: Any, config_name: str | None = None) -> list[str]:
    """``--config-dir`` and the like of this command, for the processes that train."""
    sources = {source.provider: source.path for source in hydra.runtime.config_sources}
    arguments = ["--config-name", config_name or hydra.job.config_name]
    if sources["main"] != CONF_DIR:
        arguments += ["--config-path", os.path.abspath(sources["main"])]
    if "command-line" in sources:
        arguments += ["--config-dir", os.path.abspath(sources["command-line"])]
    return arguments
