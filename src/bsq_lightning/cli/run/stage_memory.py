"""What one device holds while a stage trains, computed before it does."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from bsq_lightning.module import QuantModule
from bsq_lightning.ops.tensor_bytes import saved_bytes, tensor_bytes
from bsq_lightning.optimizer import LatentOptimizer

AUTOCAST = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


class StageMemory(NamedTuple):
    """Bytes on one device at the end of a forward pass, when most is held at once.

    Fine-tuning's latents have gradients for the length of a step; activations are gone by then and were larger.
    What the device's libraries take for themselves (a CUDA context, workspaces, fragments) is not in it.

    Args:
        batch: images of a step on this device.
        activations: what the backward pass needs; None where it cannot be counted without running the network.
        latents: bit planes, or what else is trained in place of weights, and their momentum.
        weights: parameters and buffers of the network, gradients, momentum of the float parameters.
        buckets: the copy of the gradients that DDP sends; 0 on a single device.
        images: the next batch, which the loader has brought already; this one's images are among the activations.
    """

    batch: int
    activations: int | None
    latents: int
    weights: int
    buckets: int
    images: int

    @property
    def total(self) -> int:
        """All of it, in bytes."""
        return (self.activations or 0) + self.latents + self.weights + self.buckets + self.images

    def __str__(self) -> str:
        parts = {
            "activations": self.activations,
            "latents and momentum": self.latents,
            "network with gradients and momentum": self.weights,
            "DDP buckets": self.buckets,
            "next images": self.images,
        }
        unit, name = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        shown = ", ".join(f"{part} {size / unit:.2f}" for part, size in parts.items() if size)
        unknown = " and the activations, which cannot be counted for this network" if self.activations is None else ""
        return f"{self.total / unit:.2f} {name}{unknown} at batch {self.batch}: {shown}"


def stage_memory(
    module: QuantModule, optimizer: Optimizer, batch: int, image_size: int, precision: str, several_devices: bool
) -> StageMemory:
    """Counts what a stage holds.

    Args:
        module: the stage's module, in training mode, after a step.
        optimizer: its optimizer after that step, so that momentum is there to be counted, whatever the optimizer.
        batch: images of a step on one device.
        image_size: side of the images.
        precision: Lightning's name of the arithmetic (``32-true``, ``bf16-mixed``).
        several_devices: whether DDP will hold its buckets.
    """
    network = module.network
    shape = (batch, 3, image_size, image_size)
    try:
        activations = saved_bytes(network, shape, AUTOCAST.get(precision, torch.float32))
    except Exception:  # a network may ask for the content of a tensor in any way it likes
        activations = None
    latents = [latent for _, _, quantizer in network.quantizers() for latent in quantizer.latents()]
    trained_beside = {id(tensor) for tensor in latents}
    own = [t for t in (*network.parameters(), *network.buffers()) if id(t) not in trained_beside]
    gradients = [parameter for parameter in network.parameters() if parameter.requires_grad]
    # A quantized weight's own entry in the optimizer is the momentum of its planes.
    beside = trained_beside | {id(parameter) for _, parameter, _ in network.quantizers()}
    states = [optimizer.state, optimizer.inner.state] if isinstance(optimizer, LatentOptimizer) else [optimizer.state]
    momentum: dict[bool, list[Tensor]] = {True: [], False: []}
    for state in states:
        for parameter, entries in state.items():
            momentum[id(parameter) in beside] += [entry for entry in entries.values() if isinstance(entry, Tensor)]
    return StageMemory(
        batch=batch,
        activations=activations,
        latents=tensor_bytes([*latents, *momentum[True]]),
        weights=tensor_bytes([*own, *momentum[False]]) + tensor_bytes(gradients),
        buckets=tensor_bytes(gradients) if several_devices else 0,
        images=4 * torch.Size(shape).numel(),
    )
