"""What Hydra's launcher does with the points of a multirun: compose, check, share float stages, run, sum up."""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf, open_dict

from bsq_lightning.cli.build import check_constructors, planned_stages
from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.cli.points import Slots, float_command, run_points, train_command
from bsq_lightning.cli.settled import check_same, float_part, settled_config
from bsq_lightning.cli.status import print_status
from bsq_lightning.run_folder import RunFolder, SweepFolder

log = logging.getLogger(__name__)


def launch_points(
    config: DictConfig, loader: Any, jobs: Sequence[Sequence[str]], first: int, slots: Slots
) -> list[tuple[DictConfig, RunFolder]]:
    """Runs the points of a multirun that are not done yet; returns each one's config and folder.

    Every point is composed and its constructors run before the first one trains. Runs that differ only after their
    float stage train it once, in ``SWEEP/float/``.

    Args:
        config: the multirun's own config, with its ``hydra`` node.
        loader: Hydra's config loader.
        jobs: overrides of each point.
        first: number of the first point.
        slots: how many points at a time, and with what.

    Raises:
        ValueError: a point cannot be composed or built, or its folder holds another run; nothing was trained.
    """
    sweep = SweepFolder(Path(str(config.hydra.sweep.dir)).absolute())
    composed = [_compose(config, loader, jobs, i, first, sweep) for i in range(len(jobs))]
    folders = [folder for _, folder in composed]
    if len({folder.path for folder in folders}) < len(folders):
        raise ValueError("two points of the sweep have one folder: hydra.sweep.subdir must tell them apart")
    seen: dict[str, Any] = {}
    points: list[tuple[DictConfig, RunFolder]] = []
    for (cfg, folder), job in zip(composed, jobs, strict=True):
        try:
            check_constructors(cfg, seen)
            kept = OmegaConf.load(folder.config) if folder.config.exists() else None
            settled = settled_config(cfg, kept)
            if kept is not None:
                check_same(settled, kept, folder)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"point {' '.join(job)}: {error}. No point was started.") from error
        points.append((settled, folder))
    sweep.add_points({str(f.path.relative_to(sweep.path)): list(job) for f, job in zip(folders, jobs, strict=True)})
    _train(points, jobs, sweep, slots, hydra_arguments(config.hydra))
    print_status(sweep)
    return points


def _train(
    points: list[tuple[DictConfig, RunFolder]],
    jobs: Sequence[Sequence[str]],
    sweep: SweepFolder,
    slots: Slots,
    arguments: list[str],
) -> None:
    elsewhere = [folder.path.name for _, folder in points if folder.state == "running"]
    todo = [(c, f, j) for (c, f), j in zip(points, jobs, strict=True) if f.state not in ("done", "running")]
    shared: dict[Path, list[tuple[RunFolder, list[str]]]] = {}
    commands: dict[Path, list[str]] = {}
    for cfg, folder, job in todo:
        stages = planned_stages(cfg)
        if stages[0] == "float" and len(stages) > 1 and not cfg.float_stage and not folder.last.exists():
            shared.setdefault(_float_folder(cfg, sweep), []).append((folder, list(job)))
        else:
            commands[folder.path] = train_command(folder.path, job, arguments)
    floats = {
        path: float_command(path, users[0][1], arguments)
        for path, users in shared.items()
        if len(users) > 1 or path.exists()
    }
    for name in elsewhere:
        log.warning("%s is being trained by another process and left to it", name)
    log.info(
        "%d points, %d to run, %d at a time with %s threads each; %d float stages shared by %d points; folder %s",
        len(points), len(todo), slots.count, slots.environment(0)["OMP_NUM_THREADS"], len(floats),
        sum(len(shared[path]) for path in floats), sweep.path,
    )  # fmt: skip
    unfinished = {path: command for path, command in floats.items() if "float" not in RunFolder(path).results()}
    trained = run_points(unfinished, slots, sweep.path.name)
    for path, users in shared.items():
        for folder, job in users:
            if not trained.get(path, True):
                folder.record_error(f"its float stage failed, see {path / 'error.json'}")
                continue
            own = [f"float_stage='{path}'"] if path in floats else []
            commands[folder.path] = train_command(folder.path, [*job, *own], arguments)
    # In the order that was asked for, whatever shares what.
    run_points({f.path: commands[f.path] for _, f in points if f.path in commands}, slots, sweep.path.name)


def _compose(
    config: DictConfig, loader: Any, jobs: Sequence[Sequence[str]], i: int, first: int, sweep: SweepFolder
) -> tuple[DictConfig, RunFolder]:
    # What all points have in common is left out of the names of their folders.
    common = set(jobs[0]).intersection(*jobs) if len(jobs) > 1 else set()
    keys = ",".join(f"'{override.partition('=')[0].lstrip('+~')}'" for override in sorted(common))
    cfg = loader.load_sweep_config(
        config, [*jobs[i], f"hydra.job.config.override_dirname.exclude_keys=[{keys}]", "hydra.mode=RUN"]
    )
    with open_dict(cfg):
        cfg.hydra.job.num = first + i
        cfg.hydra.job.id = str(first + i)
        folder = RunFolder(sweep.path / str(cfg.hydra.sweep.subdir))
        del cfg["hydra"]
    return cfg, folder


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
