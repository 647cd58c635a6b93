"""Operations that LatentOptimizer.step() launches, by depth: they should not grow with the number of layers.

On a CPU the fused step itself, one call for all tensors, is not among torch's operations; on a GPU it is four kernels.
"""

from collections import Counter
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.harness import Report, Settings
from benchmarks.sides import ALPHA, SGD, images, quantized, resnet, trained_step
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.regularizers import BitGroupLasso


class Dispatched(TorchDispatchMode):
    """Counts operations that compute; views launch nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not func.is_view and func.namespace != "profiler":
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def operations(optimizer: LatentOptimizer) -> Counter[str]:
    """By name, of one step."""
    with Dispatched() as dispatched:
        optimizer.step()
    return dispatched.found


def kernels(optimizer: LatentOptimizer) -> Counter[str]:
    """The same on a GPU, where a foreach operation can take several."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        optimizer.step()
        torch.cuda.synchronize()
    events = profile.events() or []
    return Counter(event.name for event in events if "CUDA" in str(event.device_type))


def run(settings: Settings) -> Report:
    report, totals = Report(), {}
    of_step, word = (operations, "operations") if settings.device == "cpu" else (kernels, "kernels")
    for depth in settings.choose((20, 32, 56, 110), (8, 14)):
        network = quantized(resnet(depth), device=settings.device)
        # foreach is torch's own choice on a GPU: one operation for all float parameters.
        optimizer = LatentOptimizer(network, partial(SGD, foreach=True), BitGroupLasso(ALPHA))
        step = trained_step(network, optimizer, images(2, 32, settings.device))
        step()  # the first one makes the momentum; the second leaves the gradients for the one that is counted
        step()
        found = of_step(optimizer)
        totals[depth] = found.total()
        report.numbers[f"ResNet-{depth}"] = dict(found.most_common())
        report.add(f"update of ResNet-{depth}, {len(network.names())} tensors", found.total(), word)
    smallest, *_, largest = totals.values()
    report.add("update, deepest / shallowest network", largest / smallest, at_most=1.0)
    return report
