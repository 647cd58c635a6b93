"""Bytes that a quantized weight costs beyond its W and G, and the resident peak of a training step."""

import multiprocessing
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness import Report, Settings, SkipRow, need_memory
from benchmarks.naive import NaiveBSQ
from benchmarks.sides import (
    ALPHA,
    SGD,
    STATE_BYTES_NAIVE,
    bsq,
    bsq_step,
    images,
    layer_sizes,
    mean_bits,
    mixed_precisions,
    naive_step,
    plain_bytes,
    plain_step,
    quantized,
    resnet,
    resnet50,
    trained_step,
)
from bsq_lightning.ops.tensor_bytes import tensor_bytes
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer


def tensors_in(value: Any) -> Iterable[Tensor]:
    """All tensors of nested dictionaries and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from tensors_in(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_in(part)


def state_bytes(net: nn.Module, device: str, weight: Callable[..., Any] = BitPlaneQuantizer, **options: Any) -> float:
    """Latents and optimizer state of BSQ after a step, per quantized weight."""
    network = quantized(net, weight, device=device, **options)
    optimizer = bsq(network)
    trained_step(network, optimizer, images(4, 32, device))()
    kept: list[Tensor] = [latent for _, _, quantizer in network.quantizers() for latent in quantizer.latents()]
    kept.extend(tensors_in(dict(optimizer.state)))
    return tensor_bytes(kept) / sum(parameter.numel() for _, parameter, _ in network.quantizers())


def naive_bytes(net: nn.Module, device: str) -> float:
    """The same of naive BSQ, and what it keeps for the backward pass beyond what the network does."""
    batch = images(4, 32, device)
    naive = NaiveBSQ(quantized(net, device=device), ALPHA).to(device)
    optimizer = SGD([*naive.planes.parameters(), *naive.scales.parameters()])
    own = {p.untyped_storage()._cdata for p in naive.parameters()}
    plain = quantized(net, LatentQuantizer, device=device)

    def saved(forward: Callable[[], Tensor], parameters: set[int]) -> tuple[Tensor, int]:
        kept: list[Tensor] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
            loss = forward()
        return loss, tensor_bytes(t for t in kept if t.untyped_storage()._cdata not in parameters)

    loss, kept = saved(lambda: F.cross_entropy(naive(batch[0]), batch[1]) + naive.penalty(), own)
    weights = {p.untyped_storage()._cdata for p in plain.parameters()}
    _, by_network = saved(lambda: F.cross_entropy(plain(batch[0]), batch[1]), weights)
    loss.backward()
    optimizer.step()
    planes = [*naive.planes.parameters(), *naive.scales.parameters()]
    lasting = tensor_bytes([*planes, *(p.grad for p in planes if p.grad is not None)])
    lasting += tensor_bytes(tensors_in(dict(optimizer.state)))
    return (lasting + kept - by_network) / sum(layer_sizes(net).values())


def peak_bytes(side: Callable[..., Callable[[], None]], settings: Settings, count: int, size: int) -> int:
    """Most memory that two training steps took, the process included; for a process of its own."""
    torch.set_num_threads(settings.threads)
    step = side(resnet50(settings), images(count, size, settings.device), settings.device)
    step()
    step()
    if settings.device != "cpu":
        return torch.cuda.max_memory_allocated()
    # Not ru_maxrss, which a new process takes over from the one that started it.
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return 1024 * int(found[1]) if found else 0


def run(settings: Settings) -> Report:
    net, device, report = resnet(20), settings.device, Report()
    three = mixed_precisions(net)
    mean = mean_bits(three, layer_sizes(net))
    report.add("state per weight, 8 bits", state_bytes(net, device), "B", at_most=128.0)
    at_mean = state_bytes(net, device, precisions=three)
    # In proportion to the bits left, but for a scale and a few norms of every layer.
    report.add(f"state per weight, a mean of {mean:.2f} bits", at_mean, "B", at_most=16 * mean * 1.01)
    half = state_bytes(net, device, partial(BitPlaneQuantizer, state_dtype="bfloat16"))
    report.add("state per weight, 8 bits in bfloat16", half, "B", at_most=64.0)
    report.add("state per weight, naive BSQ, 8 bits", naive_bytes(net, device), "B")

    big = resnet50(settings)
    weights = sum(layer_sizes(big).values())
    count, size = settings.choose((8, 224), (2, 32))
    for name, side, state in (
        ("plain", plain_step, 0), ("BSQ", bsq_step, 128), ("naive BSQ", naive_step, STATE_BYTES_NAIVE),
    ):  # fmt: skip
        what = f"ResNet-50, batch {count}: peak of a step, {name}"
        try:
            need_memory(what, plain_bytes(big, count, size) + state * weights, device)
        except SkipRow as reason:
            report.add(what, f"left out: {reason}")
            continue
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            report.add(what, pool.submit(peak_bytes, side, settings, count, size).result() / 1e9, "GB")
    return report
