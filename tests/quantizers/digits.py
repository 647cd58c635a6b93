"""A network that trains on real digits in seconds, for what only training shows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer, Penalty


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """1,300 images of 64 pixels to train with and 497 to test with, with their labels."""
    found: Any = load_digits()
    images, labels = torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(5))
    images, labels = images[order], labels[order]
    return images[:1300], labels[:1300], images[1300:], labels[1300:]


def float_net(epochs: int = 15, width: int = 48) -> nn.Module:
    """64-width-10, trained in float to about 96 %."""
    torch.manual_seed(4)
    net = nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))
    network = QuantizedNetwork(net)
    train(network, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), epochs)
    return net


def optimizer_of(network: QuantizedNetwork, lr: float, regularizer: Penalty | None = None) -> LatentOptimizer:
    return LatentOptimizer(network, partial(torch.optim.SGD, lr=lr, momentum=0.9), regularizer)


def train(
    network: QuantizedNetwork,
    optimizer: torch.optim.Optimizer,
    epochs: int,
    after_epoch: Callable[[], None] = lambda: None,
    images_a_step: int = 65,
) -> None:
    """What a stage does: progress to the quantizers, training weights before each step."""
    images, labels, _, _ = digits()
    generator = torch.Generator().manual_seed(6)
    for epoch in range(epochs):
        network.on_epoch(epoch / max(1, epochs - 1))
        for chosen in torch.randperm(len(images), generator=generator).split(images_a_step):
            network.write_training_weights_(generator)
            optimizer.zero_grad()
            F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
        after_epoch()
    network.hold_weights_()


def accuracy(network: QuantizedNetwork) -> float:
    """On the test images, with the weights that the network holds now; in percent."""
    _, _, images, labels = digits()
    with torch.no_grad():
        return 100 * float((network(images).argmax(1) == labels).float().mean())
