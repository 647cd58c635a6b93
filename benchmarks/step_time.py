"""Training step of ResNet-20 with BSQ against the same network and activation quantizers with plain SGD.

Both in one process, alternating; median of the ratios of neighbouring pairs and the spread. Nothing else should run.
Command: python benchmarks/step_time.py [--steps 30] [--threads 2]
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch.nn import functional as F

from bsq_lightning.models import resnet20
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, relu6_or_pact
from bsq_lightning.regularizers import BitGroupLasso

SGD = partial(torch.optim.SGD, lr=0.01, momentum=0.9, weight_decay=1e-4)


def network(quantizer: Callable, precision: int) -> QuantizedNetwork:
    """ResNet-20 at 4-bit activations."""
    return QuantizedNetwork(
        resnet20(), quantizer, relu6_or_pact, precision=precision, act_precision=4, skip=["*.downsample.0"]
    )


def stepper(net: QuantizedNetwork, optimizer: torch.optim.Optimizer, batch: int) -> Callable[[], None]:
    """One training step as a function without arguments."""
    images, labels = torch.randn(batch, 3, 32, 32), torch.randint(0, 10, (batch,))

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def seconds(step: Callable[[], None]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def compare(precision: int, steps: int, batch: int) -> dict[str, float]:
    """Ratio of a BSQ step to a plain one."""
    bsq = network(BitPlaneQuantizer, precision)
    ours = stepper(bsq, LatentOptimizer(bsq, SGD, BitGroupLasso(5e-3)), batch)
    plain_net = network(LatentQuantizer, precision)  # for its activation quantizers; its weights take plain SGD
    plain = stepper(plain_net, SGD([p for p in plain_net.parameters() if p.requires_grad]), batch)
    for _ in range(3):
        ours(), plain()
    pairs = [(seconds(plain), seconds(ours)) for _ in range(steps)]
    ratios = sorted(b / a for a, b in pairs)
    return {
        "bits": precision,
        "plain_ms": round(1000 * statistics.median(a for a, _ in pairs), 1),
        "bsq_ms": round(1000 * statistics.median(b for _, b in pairs), 1),
        "ratio_median": round(statistics.median(ratios), 3),
        "ratio_quartiles": [round(q, 3) for q in statistics.quantiles(ratios, n=4)[::2]],
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch", type=int, default=128)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    for precision in (8, 3):
        print(json.dumps(compare(precision, arguments.steps, arguments.batch)))


if __name__ == "__main__":
    main()
