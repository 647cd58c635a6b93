"""BSQ in a plain loop, without Hydra or Lightning: float, then bit planes with adjustments."""

from functools import partial

import torch
from sklearn.datasets import load_digits

import bsq_lightning as bsq

data, sgd = load_digits(), partial(torch.optim.SGD, lr=0.05, momentum=0.9)
images, labels = torch.tensor(data.images[:, None] / 16, dtype=torch.float32), torch.tensor(data.target)
net = torch.nn.Sequential(torch.nn.Conv2d(1, 16, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(576, 10))


def train(network: torch.nn.Module, optimizer: torch.optim.Optimizer, epochs: int) -> float:
    for _ in range(epochs):
        for rows in torch.randperm(1500).split(64):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(network(images[rows]), labels[rows]).backward()
            optimizer.step()
    return float((network(images[1500:]).argmax(1) == labels[1500:]).float().mean())


print("float", train(net, sgd(net.parameters()), 10))
network = bsq.quantize(net, precision=8)
optimizer = bsq.build_optimizer(network, sgd, alpha=0.03)
for _ in range(4):
    accuracy = train(network, optimizer, 3)
    bsq.adjust(network, optimizer)
    print("bit planes", accuracy, bsq.read_scheme(network).precisions())
