"""A training step of every method against the plain one, ResNet-20, batch 128 at 32 px, with state per weight; and what
the cures cost that all methods can have: a teacher, and holding weights that oscillate."""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Report, Settings, alternate, compare
from benchmarks.sides import ALPHA, SGD, images, plain_step, resnet
from benchmarks.state import tensors_in
from bsq_lightning.callbacks.oscillation_freezing import begun, follow_
from bsq_lightning.models.distillation import Distillation
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.tensor_bytes import tensor_bytes
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import (
    PACT,
    BitPlaneQuantizer,
    CPQQuantizer,
    CSQQuantizer,
    FixedPointQuantizer,
    LatentQuantizer,
    WeightQuantizer,
    relu6_or_pact,
)
from bsq_lightning.quantizers.allocated import AllocatedQuantizer
from bsq_lightning.quantizers.dorefa import DoReFaQuantizer
from bsq_lightning.quantizers.filter_bits import FilterQuantizer
from bsq_lightning.quantizers.lsq import LSQQuantizer
from bsq_lightning.quantizers.lsq_activation import LSQActivation
from bsq_lightning.quantizers.msq import MSQQuantizer
from bsq_lightning.regularizers import BitGroupLasso, BitsliceL1, CSQBudget, DropBitsL0, Regularizer
from bsq_lightning.regularizers.msq_lsb import LowestBitsL1

UNIFORM = partial(LatentQuantizer, step="mse", units="weight")
Build = tuple[Callable[..., WeightQuantizer], Callable[..., Any], Callable[[], Regularizer] | None, int]
#: Weights, activations, penalty, bits.
METHODS: dict[str, Build] = {
    "uniform": (UNIFORM, relu6_or_pact, None, 2),
    "LSQ": (LSQQuantizer, relu6_or_pact, None, 2),
    "LSQ, activations too": (LSQQuantizer, LSQActivation, None, 2),
    "DoReFa": (partial(DoReFaQuantizer, scale="fit"), relu6_or_pact, None, 2),
    "PACT": (partial(DoReFaQuantizer, scale="fit"), PACT, None, 2),
    "water filling": (AllocatedQuantizer, relu6_or_pact, None, 4),
    "water filling, filters": (FilterQuantizer, relu6_or_pact, None, 4),
    "MSQ": (MSQQuantizer, relu6_or_pact, partial(LowestBitsL1, 5e-5), 7),
    "bit-slice L1": (FixedPointQuantizer, relu6_or_pact, partial(BitsliceL1, 0.5), 8),
    "BSQ": (BitPlaneQuantizer, relu6_or_pact, partial(BitGroupLasso, ALPHA), 8),
    "CPQ": (CPQQuantizer, relu6_or_pact, None, 3),
    "CPQ and DropBits": (
        partial(CPQQuantizer, dropbits=True, learn_bits=True), relu6_or_pact, partial(DropBitsL0, 0.1), 3,
    ),
    "CSQ": (CSQQuantizer, relu6_or_pact, partial(CSQBudget, 0.01, target_bits=2), 8),
}  # fmt: skip
AT_MOST = 1.5
REPORTED_ONLY = ("CSQ",)


def built(net: nn.Module, method: str, device: str) -> tuple[QuantizedNetwork, LatentOptimizer]:
    """Network and optimizer of a method, as its stage has them."""
    weight, activation, penalty, bits = METHODS[method]
    network = QuantizedNetwork(
        copy.deepcopy(net), weight, activation, precision=bits, act_precision=4, skip=["*.downsample.0"]
    ).to(device)
    optimizer = LatentOptimizer(network, SGD, penalty() if penalty else None)
    if method.startswith("water filling"):
        optimizer.damage.every = 1  # while bits are exchanged
    network.on_epoch(0.5)
    return network, optimizer


def step_of(
    network: QuantizedNetwork,
    optimizer: LatentOptimizer,
    batch: tuple[Tensor, Tensor],
    teacher: Distillation | None = None,
    after: Callable[[], None] | None = None,
) -> Callable[[], None]:
    """One training step as the module and its callbacks make it."""
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        if not network.exact:
            network.write_training_weights_(generator)
        optimizer.zero_grad()
        logits = network(batch[0])
        loss = F.cross_entropy(logits, batch[1])
        (loss if teacher is None else teacher(batch[0], logits, loss)).backward()
        optimizer.step()
        if after is not None:
            after()

    return step


def freezing(network: QuantizedNetwork) -> Callable[[], None]:
    """What ``freeze=oscillating`` adds to a step."""
    records = {name: begun(quantizer) for name, _, quantizer in network.quantizers()}

    def after() -> None:
        for name, parameter, quantizer in network.quantizers():
            follow_(records[name], quantizer, 0.01, 0.04)
            with torch.no_grad():
                parameter.copy_(quantizer.weight())

    return after


def state_bytes(network: QuantizedNetwork, optimizer: LatentOptimizer) -> float:
    """Latents, what quantizers hold beside them, and momentum, after a step, per quantized weight."""
    latents = {id(p): p for _, _, q in network.quantizers() for p in [*q.parameters(), *q.buffers()]}
    kept: list[Tensor] = list(latents.values())
    kept.extend(tensors_in({p: s for p, s in optimizer.inner.state.items() if id(p) in latents}))
    kept.extend(tensors_in(dict(optimizer.state)))
    return tensor_bytes(kept) / sum(parameter.numel() for _, parameter, _ in network.quantizers())


def run(settings: Settings) -> Report:
    net = resnet(settings.choose(20, 8))
    batch = images(settings.choose(128, 4), 32, settings.device)
    parts = {name: built(net, name, settings.device) for name in METHODS}
    sides = {"plain": plain_step(net, batch, settings.device)}
    sides |= {name: step_of(*each, batch) for name, each in parts.items()}
    teacher = Distillation(copy.deepcopy(net).to(settings.device))
    sides["uniform with a teacher"] = step_of(*built(net, "uniform", settings.device), batch, teacher)
    frozen = built(net, "uniform", settings.device)
    sides["uniform, oscillating weights held"] = step_of(*frozen, batch, after=freezing(frozen[0]))
    seconds = alternate(sides, settings.choose(20, 3), warmup=settings.choose(2, 1))
    report = Report()
    bounds = {name: AT_MOST for name in METHODS if name not in REPORTED_ONLY}
    compare(report, "ResNet-20 step", seconds, bounds)
    report.add("state per weight, plain: momentum", 4.0, "B")
    for name, (network, optimizer) in parts.items():
        report.add(f"state per weight, {name}", state_bytes(network, optimizer), "B")
    return report
