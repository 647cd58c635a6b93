"""Bytes that DDP all-reduces in a training step: float network, BSQ of this project, planes as Parameters.

Two gloo processes, one step each, gradients counted where DDP hands its buckets over, other tensors at the call.
Command: python -m benchmarks.ddp_bytes [--model resnet20] [--precision 8]
"""

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.naive import NaiveBSQ
from benchmarks.sides import ALPHA, SGD, bsq, layer_sizes, quantized
from bsq_lightning import models


class Count:
    """Bytes that went through."""

    def __init__(self) -> None:
        self.gradients = self.calls_in_all = 0

    def bucket(self, group: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        self.gradients += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    @contextmanager
    def calls(self) -> Iterator[None]:
        real = dist.all_reduce

        def all_reduce(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            self.calls_in_all += tensor.nbytes
            return real(tensor, *args, **kwargs)

        dist.all_reduce = all_reduce
        try:
            yield
        finally:
            dist.all_reduce = real


def measure(kind: str, model: str, precision: int) -> dict[str, int]:
    torch.manual_seed(0)
    net = getattr(models, model)()
    network = quantized(net, precisions=dict.fromkeys(layer_sizes(net), precision))
    module: nn.Module = network
    if kind == "float":
        module = net
    elif kind == "planes as Parameters":
        module = NaiveBSQ(network, ALPHA)
    count = Count()
    wrapped = DistributedDataParallel(module)
    wrapped.register_comm_hook(None, count.bucket)
    optimizer: torch.optim.Optimizer
    if kind == "BSQ":
        optimizer = bsq(network)
    else:
        optimizer = SGD([p for p in module.parameters() if p.requires_grad])
    images, labels = torch.randn(8, 3, 32, 32), torch.randint(0, 10, (8,))
    with count.calls():
        nn.functional.cross_entropy(wrapped(images), labels).backward()
        optimizer.step()
    return {"gradients": count.gradients, "activation ranges": count.calls_in_all - count.gradients}


def process(rank: int, arguments: argparse.Namespace, results: Any) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(arguments.port)}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    for kind in ("float", "BSQ", "planes as Parameters"):
        measured = measure(kind, arguments.model, arguments.precision)
        if rank == 0:
            results[kind] = measured
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet20", help="a function of bsq_lightning.models")
    parser.add_argument("--precision", type=int, default=8)
    parser.add_argument("--port", type=int, default=29561)
    arguments = parser.parse_args()
    with torch.multiprocessing.Manager() as manager:
        results = manager.dict()
        torch.multiprocessing.spawn(process, (arguments, results), nprocs=2)
        found = dict(results)
    print(f"{arguments.model}, {arguments.precision} bits, 4-bit activations, 2 processes; bytes per step and process")
    for kind, measured in found.items():
        ratio = measured["gradients"] / found["float"]["gradients"]
        others = measured["activation ranges"]
        print(f"{kind:22s} gradients {measured['gradients']:>12,} ({ratio:.2f} x), activation ranges {others:,}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
