"""The quantization card of a run: computed from its weights, held against what the run says, kept in its folder."""

import hashlib
import logging
import re
import subprocess
import time
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from bsq_lightning import cards
from bsq_lightning.cards import Card
from bsq_lightning.cli.building.experiment import Experiment
from bsq_lightning.cli.config import read_overrides
from bsq_lightning.data import ImageDataModule
from bsq_lightning.distributed import alone
from bsq_lightning.files import write_whole
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantized_tensor import load_state
from bsq_lightning.run_folder import RunFolder, SweepFolder

log = logging.getLogger(__name__)


def card_of_run(
    folder: RunFolder,
    experiment: Experiment,
    network: QuantizedNetwork,
    datamodule: ImageDataModule,
    summary: dict[str, Any],
) -> Card:
    """Computes the card of a run.

    Args:
        folder: its folder, with ``quantized.safetensors``.
        experiment: its parts.
        network: that of its newest checkpoint.
        datamodule: its data.
        summary: the content of its ``summary.json``, be it written already or not.

    Raises:
        FileNotFoundError: no ``quantized.safetensors``.
        ValueError: file, checkpoint, config and summary disagree; the message names the field.
    """
    state = load_state(folder.quantized_file)
    config: Any = OmegaConf.to_container(experiment.cfg)
    cards.hold_same_network(state, network.state().fitting())
    cards.hold_against_config(state, config)
    cards.hold_against_summary(state, summary, folder.scheme_file)
    origin = {
        "checkpoint": str(folder.last.relative_to(folder.path)),
        "checkpoint_sha256": _sha256(folder.last),
        "quantized_sha256": _sha256(folder.quantized_file),
        "float_weights_sha256": sha256_of_float(config, folder),
        "commit": _commit(),
        "command": " ".join(
            ["ptq" if config.get("ptq") else "train", *map(without_folders, read_overrides(folder.path))]
        ),
        "date": time.strftime("%Y-%m-%d"),
        "fingerprint": f"{datamodule.fingerprint():016x}",
        "swept": _swept(folder),
    }
    return cards.build_card(network.net, state, config=config, summary=summary, origin=origin)


def write_card(folder: RunFolder, card: Card) -> None:
    """Keeps a card as ``card.yaml`` and ``card.md``."""
    write_whole(folder.card_file.with_suffix(".md"), card.to_markdown())
    write_whole(folder.card_file, card.to_yaml())


def leave_card(
    folder: RunFolder,
    experiment: Experiment,
    network: QuantizedNetwork,
    datamodule: ImageDataModule,
    summary: dict[str, Any],
) -> None:
    """The same at the end of a run, which nothing here undoes: what goes wrong is said, and there is no card. Only the
    rank that writes is here, and asks no other one."""
    if not network.names() or not folder.writer:
        return
    try:
        with alone():
            write_card(folder, card_of_run(folder, experiment, network, datamodule, summary))
    except ValueError as error:
        log.warning("no quantization card is written, because the run disagrees with itself: %s", error)
    except Exception as error:  # hours of training are worth more than a card
        log.warning("no quantization card is written: %s: %s", type(error).__name__, error)
        log.debug("where", exc_info=True)


def kept_card(folder: RunFolder, experiment: Experiment, network: QuantizedNetwork) -> Card:
    """The card that a run keeps; of a run that keeps none, because it is not finished or older than cards, what weights
    and config tell.

    Raises:
        ValueError: the card that it keeps is none.
    """
    if folder.card_file.exists():
        return Card.load(folder.card_file)
    config: Any = OmegaConf.to_container(experiment.cfg)
    summary = folder.summary() if folder.is_finished else None
    return cards.build_card(network.net, network.state().fitting(), config=config, summary=summary)


def check_kept(folder: RunFolder, card: Card) -> None:
    """Holds a card against the one that the folder keeps, if it keeps one.

    Raises:
        ValueError: that one is of another checkpoint, or says something else; the message names the fields.
    """
    if not folder.card_file.exists():
        return
    kept = Card.load(folder.card_file)
    anew = "overwrite=true writes the card anew"
    for name, path in (("checkpoint", folder.last), ("quantized", folder.quantized_file)):
        field = f"generated_from.{name}_sha256"
        if kept[field] != card[field]:
            raise ValueError(f"{field}: {path} was changed after {folder.card_file} was written. {anew}")
    found = kept.differences(card)
    found.pop("compute.hyperparameters_swept", None)  # a sweep may have got more points
    if found:
        told = "; ".join(f"{name}: {old} there, {new} by the weights" for name, (old, new) in list(found.items())[:5])
        raise ValueError(f"{folder.card_file} says something else than the run ({told}). {anew}")


def _swept(folder: RunFolder) -> str | list[str]:
    """The keys in which the points of its sweep differ; what was tried elsewhere, no folder tells."""
    points = list(SweepFolder(folder.path.parent).points().values())
    common = set(points[0]).intersection(*points) if points else set()
    keys = {override.partition("=")[0].lstrip("+~") for overrides in points for override in overrides}
    constant = {override.partition("=")[0].lstrip("+~") for override in common}
    return sorted(keys - constant) or "unknown"


def without_folders(override: str) -> str:
    """An override whose absolute paths are names: which folders they were in says nothing on another machine.

    Example:
        >>> without_folders("model.weights=/home/me/float.ckpt"), without_folders("hydra.run.dir='/a b/c'")
        ('model.weights=float.ckpt', "hydra.run.dir='c'")
        >>> without_folders("~model.shortcut"), without_folders("data.root=images/mine")
        ('~model.shortcut', 'data.root=images/mine')
    """
    return re.sub(r"(?<=[=,\[{: '\"])[~/](?:[^,\]}'\"/]*/+)*(?=[^,\]}'\"/])", "", override)


def sha256_of_float(config: Any, folder: RunFolder) -> str:
    """Of the file with the float weights; once it is gone, what the card that the folder keeps says."""
    path = (config.get("model") or {}).get("weights")
    if not path or str(path).isidentifier():  # trained here, or one of torchvision's
        return "n/a"
    if Path(path).is_file():
        return _sha256(Path(path))
    try:
        return Card.load(folder.card_file)["generated_from.float_weights_sha256"]
    except (FileNotFoundError, ValueError):
        return "unknown"


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _commit() -> str:
    """Of the checkout that computes the card; an installed package has none."""
    checkout = Path(__file__).parents[4]
    if not (checkout / ".git").exists():
        return "n/a"
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"
