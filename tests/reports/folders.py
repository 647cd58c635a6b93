"""Run folders written by hand, as a training would leave them: real names and sizes, made-up figures."""

import json
import math
import random
from pathlib import Path
from typing import Any

import yaml

from bsq_lightning.scheme import LayerScheme, Scheme

COLUMNS = (
    "stage,epoch,step,lr,train/loss,train/penalty,train/acc,val/loss,val/acc,val/top5,"
    "mean_precision,compression_paper,compression_signed,compression_model,seconds"
)
#: The layers of ResNet-20 for CIFAR-10, with their numbers of weights.
RESNET20 = {
    "conv1": 432,
    **{f"layer1.{i}.conv{j}": 2304 for i in range(3) for j in (1, 2)},
    **{f"layer2.{i}.conv{j}": 4608 if (i, j) == (0, 1) else 9216 for i in range(3) for j in (1, 2)},
    **{f"layer3.{i}.conv{j}": 18432 if (i, j) == (0, 1) else 36864 for i in range(3) for j in (1, 2)},
    "fc": 640,
}
TARGETS = {
    "model": "bsq_lightning.models.resnet20",
    "data": "bsq_lightning.data.CIFAR10DataModule",
}


def write_run(
    folder: Path,
    *,
    method: str = "bsq",
    alpha: float = 5e-3,
    precision: int = 2,
    seed: int = 1,
    epochs: dict[str, int] | None = None,
    interval: int = 50,
    done: bool = True,
    stop_after: int | None = None,
    accuracy: float | None = None,
    layers: dict[str, int] | None = None,
    config: dict[str, Any] | None = None,
) -> dict[str, Any] | None:
    """A run folder of ``method`` bsq, uniform or float; returns its summary, if it is done.

    ``stop_after`` is the number of rows of metrics.csv; ``accuracy`` the final test accuracy; ``config`` is merged in.
    """
    draw = random.Random(f"{method} {alpha} {precision} {seed}")
    epochs = epochs or ({"bits": 20, "finetune": 10} if method == "bsq" else {"finetune": 12})
    layers = layers or RESNET20
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        yaml.safe_dump(merged(run_config(method, alpha, precision, seed, epochs), config))
    )
    goal = _scheme_found(layers, alpha, draw) if method == "bsq" else _uniform(layers, precision)
    if accuracy is None:
        bits = sum(layers[n] * goal[n] for n in layers) / sum(layers.values())
        accuracy = 0.925 - 0.012 / max(bits, 0.4) ** 1.3 + draw.gauss(0, 0.0012) if method != "float" else 0.9255
    lines, adjustments, bits_now = [COLUMNS], [], _uniform(layers, 8) if method == "bsq" else goal
    total, count = sum(epochs.values()), 0
    for stage, n in epochs.items():
        for epoch in range(n):
            count += 1
            near = 1 - math.exp(-5 * count / total)
            acc = accuracy * (0.55 + 0.45 * near) + draw.gauss(0, 0.004)
            if method == "bsq" and stage == "bits" and ((epoch + 1) % interval == 0 or epoch + 1 == n):
                row, bits_now = _adjust(epoch, n, acc - 0.01, bits_now, goal, layers, draw)
                adjustments.append(json.dumps(row))
            scheme = _scheme(layers, bits_now)
            quantized = [
                f"{scheme.mean_precision}",
                *(f"{scheme.compression(c)}" for c in ("paper", "signed", "model")),
            ]
            penalty = f"{900 * math.exp(-4 * count / total) + draw.random() * 5}" if stage == "bits" else ""
            lines.append(",".join([
                stage, str(epoch), str((epoch + 1) * 390), "0.1", f"{2.2 * (1 - near) + 0.05 + draw.random() * 0.02}",
                penalty,
                f"{min(acc + 0.04 * near, 0.999)}", f"{1.9 * (1 - near) + 0.3 + draw.random() * 0.02}", f"{acc}", "",
                *(quantized if method != "float" else ["32.0", "1.0", "1.0", "1.0"]), "1.9",
            ]))  # fmt: skip
    lines = lines[: None if stop_after is None else stop_after + 1]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if adjustments:
        (folder / "adjustments.jsonl").write_text("\n".join(adjustments) + "\n")
    if method != "float":
        (folder / "scheme.json").write_text(_scheme(layers, bits_now).to_json())
    return _write_summary(folder, method, layers, bits_now, accuracy, seed, epochs) if done else None


def run_config(method: str, alpha: float, precision: int, seed: int, epochs: dict[str, int]) -> dict[str, Any]:
    """The resolved config, as far as a report reads it."""
    planes = {"_target_": "bsq_lightning.quantizers.BitPlaneQuantizer", "_partial_": True, "max_precision": 8}
    bsq = method == "bsq"
    quant = {
        "precision": 8 if bsq else precision, "first_last_precision": None if bsq else 8, "act_precision": 4,
        "scheme": None, "bits": planes if bsq else None,
    }  # fmt: skip
    return {
        "seed": seed, "scheme": None, "logger": {},
        "model": {"_target_": TARGETS["model"], "shortcut": "B", "weights": "/data/float.pt", "shortcuts": ["*.down*"]},
        "data": {"_target_": TARGETS["data"], "root": "/data", "val_split": 5000, "limit_train": None, "seed": seed},
        "quant": quant if method != "float" else {},
        "reg": {"_target_": "bsq_lightning.regularizers.BitGroupLasso", "alpha": alpha} if bsq else {},
        "stages": {stage: {"epochs": n} for stage, n in epochs.items()},
    }  # fmt: skip


def merged(config: dict[str, Any], more: dict[str, Any] | None) -> dict[str, Any]:
    for key, value in (more or {}).items():
        both = isinstance(value, dict) and isinstance(config.get(key), dict)
        config[key] = merged(config[key], value) if both else value
    return config


def write_error(folder: Path, message: str = "the loss is nan at epoch 3", kind: str = "NonFiniteLossError") -> None:
    trace = f'Traceback (most recent call last):\n  File "train.py", line 44, in train\n{kind}: {message}\n'
    content = {
        "type": kind,
        "message": message,
        "traceback": trace,
        "host": "node7:4242",
        "time": "2026-11-20T10:11:12+0000",
    }
    (folder / "error.json").write_text(json.dumps(content))


def write_sweep(folder: Path, points: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.json").write_text(json.dumps({"points": points}))


def write_many(folder: Path, alphas: list[float], seeds: list[int], uniform: list[int], **options: Any) -> None:
    """A sweep over alpha and seeds with its uniform line and its float network."""
    for seed in seeds:
        for alpha in alphas:
            write_run(folder / f"alpha={alpha:g},seed={seed}", alpha=alpha, seed=seed, **options)
        for precision in uniform:
            n = options.get("epochs") or {}
            epochs = {"finetune": sum(n.values())} if n else None
            write_run(
                folder / f"uniform={precision},seed={seed}",
                method="uniform",
                precision=precision,
                seed=seed,
                epochs=epochs,
            )
    write_run(folder / "plain" / "a", method="float", epochs={"float": 12})


def _scheme_found(layers: dict[str, int], alpha: float, draw: random.Random) -> dict[str, int]:
    depth = {name: i / len(layers) for i, name in enumerate(layers)}
    ends = (next(iter(layers)), next(reversed(layers)))
    wish = {name: 3.2 - 2.6 * depth[name] - 1.35 * math.log10(alpha / 5e-3) + draw.gauss(0, 0.45) for name in layers}
    return {name: max(0, min(8, round(bits + (3 if name in ends else 0) + 0.8))) for name, bits in wish.items()}


def _uniform(layers: dict[str, int], precision: int) -> dict[str, int]:
    return {name: 8 if i in (0, len(layers) - 1) else precision for i, name in enumerate(layers)}


def _adjust(
    epoch: int,
    n: int,
    acc: float,
    now: dict[str, int],
    goal: dict[str, int],
    layers: dict[str, int],
    draw: random.Random,
) -> tuple[dict[str, Any], dict[str, int]]:
    progress = (epoch + 1) / n
    after = {name: min(now[name], round(8 - (8 - goal[name]) * min(1, progress * 1.3))) for name in layers}

    def norms(name: str) -> list[float]:
        lost, size = now[name] - after[name], math.sqrt(layers[name])
        return [
            round(size * (0.004 if b >= now[name] - lost else 0.3 - 0.02 * b) * draw.uniform(0.8, 1.2), 4)
            for b in range(now[name])
        ]

    bits = [sum(layers[name] * part[name] for name in layers) for part in (now, after)]
    row = {
        "epoch": epoch, "largest_relative_change": 0.0, "acc_before": acc, "acc_after": acc - 0.001,
        "bits_before": bits[0], "bits_after": bits[1],
        "layers": {name: {"from": now[name], "to": after[name], "plane_norms": norms(name)} for name in layers},
    }  # fmt: skip
    return row, after


def _scheme(layers: dict[str, int], bits: dict[str, int]) -> Scheme:
    return Scheme(
        tuple(LayerScheme(n, layers[n], bits[n], 0.01, macs=64 * layers[n]) for n in layers),
        float_parameters=4138,
        act_precision=4,
    )


def _write_summary(
    folder: Path,
    method: str,
    layers: dict[str, int],
    bits: dict[str, int],
    accuracy: float,
    seed: int,
    epochs: dict[str, int],
) -> dict[str, Any]:
    scheme = _scheme(layers, bits) if method != "float" else Scheme((), 272474)
    summary = {
        "model": TARGETS["model"],
        "val": "seen_in_float",
        "data": {"test": 10000},
        "gbops": scheme.gbops,
        "accuracy": {
            "float": None,
            "before_finetune": None,
            "final": {"val/acc": accuracy + 0.004, "test/acc": accuracy},
        },
        "mean_precision": scheme.mean_precision,
        "sizes": scheme.sizes(),
        "scheme": scheme.precisions(),
        "act_precision": 4,
        "seconds": {stage: 1.9 * n for stage, n in epochs.items()},
        "seed": seed,
        "finished": f"2026-11-2{seed % 10}T14:03:00+0000",
    }
    (folder / "summary.json").write_text(json.dumps(summary, indent=1))
    return summary
