"""For notebooks and plain loops: quantize a network, train it, adjust it, ask for its scheme. No Hydra, no Lightning.

Everything here is reached as ``bsq_lightning.quantize`` and so on; ``examples/plain_loop.py`` trains with it.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.exporters import Exported, export_packed
from bsq_lightning.exporters import load as load_packed
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import Adjustment, BitPlaneQuantizer, LatentQuantizer, WeightQuantizer, relu6_or_pact
from bsq_lightning.regularizers import BitGroupLasso, Regularizer
from bsq_lightning.scheme import Scheme
from bsq_lightning.sensitivity import Fisher, Sensitivity, Surroundings, allocate


def quantize(
    net: nn.Module,
    weight: Callable[..., WeightQuantizer] = BitPlaneQuantizer,
    *,
    precision: int | Mapping[str, int] | Scheme = 8,
    act_precision: int = 0,
    skip: Sequence[str] = (),
) -> QuantizedNetwork:
    """Puts quantizers beside a network's weights, in place; its weights are on their grid from now on.

    Args:
        net: any network of convolutions and linear layers, with trained float weights.
        weight: quantizer of each weight tensor: BSQ's bit planes, or ``functools.partial`` of another one.
        precision: bits of magnitude, the sign is extra; one number, or by name of the layer, or a scheme.
        act_precision: bits of activations; 0 leaves them float.
        skip: name patterns of layers that stay float (``["*.downsample.0"]``).

    Raises:
        ValueError: a pattern or a name that matches nothing, or a tensor that the quantizer refuses.

    Example:
        >>> network = quantize(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), precision=3)
        >>> read_scheme(network).precisions()
        {'0': 3, '2': 3}
    """
    if isinstance(precision, Scheme):
        precision = precision.whole_precisions()
    given: dict[str, Any] = {"precisions": precision} if isinstance(precision, Mapping) else {"precision": precision}
    return QuantizedNetwork(net, weight, relu6_or_pact, act_precision=act_precision, skip=skip, **given)


def build_optimizer(
    network: QuantizedNetwork,
    sgd: Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer],
    *,
    alpha: float = 0.0,
    regularizer: Regularizer | None = None,
) -> LatentOptimizer:
    """The optimizer of a quantized network, to be used as any of torch's: it steps latents and rewrites the weights.

    Args:
        network: from ``quantize``.
        sgd: builds the torch optimizer from parameters (``functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9)``);
            bit planes take plain SGD only.
        alpha: strength of BSQ's group lasso; 0 for none.
        regularizer: another penalty in its place.

    Raises:
        ValueError: an optimizer that bit planes cannot have, a penalty with nothing to act on, or quantizers that train
            with other weights than they ship, which a plain loop does not know of.
    """
    if not network.exact:
        raise ValueError(
            "these quantizers train with other weights than they ship, on a schedule: train them with "
            "python -m bsq_lightning.train, or with bsq_lightning.module.QuantModule"
        )
    if regularizer is None and alpha:
        regularizer = BitGroupLasso(alpha)
    if regularizer is not None:
        regularizer.check({name: quantizer for name, _, quantizer in network.quantizers()})
    return LatentOptimizer(network, sgd, regularizer)


def choose_bits(
    net: nn.Module,
    batches: Iterable[Tensor | Sequence[Tensor]],
    *,
    kilobytes: float | None = None,
    mean_bits: float | None = None,
    act_precision: int = 0,
    skip: Sequence[str] = (),
    sensitivity: Sensitivity | None = None,
) -> Scheme:
    """The bits of every layer that fit a budget and should cost the loss least, in seconds and without training.

    Args:
        net: trained float network; it is left as it is.
        batches: images ``[N, ...]``, or images and labels; some hundred images are enough.
        kilobytes: of the whole model, at 1000 bytes: weights with signs, steps, and 32 bits for everything else.
        mean_bits: or bits of magnitude per quantized weight.
        act_precision: bits of activations, as ``quantize`` will be given.
        skip: layers that stay float, as ``quantize`` will be given.
        sensitivity: what estimates the cost of each choice; ``Fisher()`` if None.

    Returns:
        A scheme, which ``quantize`` takes as ``precision``.

    Raises:
        ValueError: no budget or both, or one below the least possible, which the message says.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> scheme = choose_bits(net, [torch.randn(64, 4)], kilobytes=0.08)
        >>> scheme.bits("model") <= 0.08 * 8000
        True
    """
    given = {unit: value for unit, value in (("kilobytes", kilobytes), ("mean_bits", mean_bits)) if value is not None}
    if len(given) != 1:
        raise ValueError(f"give one budget, kilobytes or mean_bits ({len(given)} are given)")
    network = quantize(copy.deepcopy(net), LatentQuantizer, act_precision=act_precision, skip=skip)
    state = network.state()
    weights = [(name, net.get_parameter(f"{name}.weight")) for name in network.names()]
    table = (sensitivity or Fisher())(net, weights, batches)
    around = Surroundings(state.float_parameters, act_precision, owners=state.owners)
    (unit, budget), *_ = given.items()
    return allocate(table, budget, unit, around).scheme


def adjust(
    network: QuantizedNetwork, optimizer: LatentOptimizer | None = None, bits: Mapping[str, int] | None = None
) -> dict[str, Adjustment]:
    """A precision adjustment: every tensor is re-quantized and loses the bits that are empty.

    Args:
        network: from ``quantize``.
        optimizer: its momentum is dropped where a quantizer asks for it, as planes do.
        bits: brings the layers it names to so many bits instead.

    Returns:
        What each quantizer says it did, by name of its layer.
    """
    done = network.adjust_precision_(bits)
    if optimizer is not None and any(each.forget_momentum for each in done.values()):
        optimizer.forget_momentum_()
    return done


@torch.no_grad()
def calibrate(network: QuantizedNetwork, batches: Iterable[Tensor]) -> None:
    """Fixes the ranges of activations from a few batches of images, so that results do not depend on the batch."""
    network.hold_weights_()
    training = network.training
    network.eval()
    with network.observing():
        for images in batches:
            network(images)
    network.train(training)


def read_scheme(network: QuantizedNetwork) -> Scheme:
    """Bits, steps and sizes of every layer now."""
    return network.scheme()


def save(network: QuantizedNetwork, path: str | Path, *, overwrite: bool = False) -> Exported:
    """Writes one packed file: codes at each layer's own width, and everything else that the network needs.

    Raises:
        FileExistsError: there is such a file, and ``overwrite`` is not set.
        ValueError: a code that its bits do not hold, as planes have between two adjustments: adjust first.
    """
    network.hold_weights_()
    return export_packed(path, network.net, network.state(), overwrite=overwrite)


def load(path: str | Path, net: nn.Module) -> nn.Module:
    """Fills a plain network of the same architecture from a packed file: the same logits, exactly.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is cut, altered or of another network; nothing in it is executed.
    """
    return load_packed(path, net)
