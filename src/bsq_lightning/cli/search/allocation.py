"""A scheme under a budget without training: a config's network, its sensitivities, the solver, and what is printed."""

import copy
from itertools import islice
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from bsq_lightning.cli.building.experiment import Experiment
from bsq_lightning.cli.config import instantiate
from bsq_lightning.cli.search.target import Target
from bsq_lightning.cli.settled import settled_config
from bsq_lightning.sensitivity import Allocation, Surroundings, allocate


def allocate_bits(cfg: DictConfig, target: Target) -> Allocation:
    """The scheme of the least predicted loss inside the budget.

    Raises:
        ValueError: no float weights are given, or the budget is below the least possible, which the message says.
    """
    experiment = Experiment(settled_config(cfg))
    if not experiment.has_float_weights:
        raise ValueError(
            "bits are allocated to trained float weights: give model.weights=FILE (a state dict, or the float.ckpt of "
            "a run folder)"
        )
    datamodule = experiment.datamodule()
    net = experiment.net(datamodule.num_classes).eval()
    network = experiment.network(copy.deepcopy(net), experiment.stages[-1])
    network.count_macs_(datamodule.image_size)
    state = network.state()
    around = Surroundings(
        state.float_parameters, state.act_precision, dict(state.macs), dict(state.input_bits), dict(state.owners)
    )
    weights = [(n, net.get_parameter(n if n.endswith(".bias") else f"{n}.weight")) for n in network.names()]
    batches = islice(datamodule.calibration_dataloader(), max(1, cfg.images // datamodule.batch_size))
    table = instantiate(cfg.sensitivity)(net, weights, list(batches))
    return allocate(table, target.value, target.name, around)


def print_allocation(found: Allocation, path: Path) -> None:
    """Bits of every layer, the sizes and the predicted rise of the loss."""
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title="bits per layer", title_justify="left")
    for column in ("layer", "weights", "bits"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for layer in found.scheme.layers:
        table.add_row(layer.name, f"{layer.size:,}", str(layer.precision))
    console.print(table)
    scheme = found.scheme
    sizes = ", ".join(f"{counting} {scheme.compression(counting):.2f} x" for counting in ("paper", "signed", "model"))
    console.print(
        f"{scheme.mean_precision:.3f} bits per weight; {sizes}; predicted rise of the loss {found.predicted:.4g}"
    )
    console.print(f"scheme: {path}", soft_wrap=True, markup=False)
    console.print(
        f"train it: python -m bsq_lightning.train quant=sensitivity reg=none scheme={path} model.weights=...",
        soft_wrap=True, markup=False,
    )  # fmt: skip
