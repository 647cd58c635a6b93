"""A network in evaluation mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Inside, ``net`` is in evaluation mode: images do not see each other through batch norm.

    Every module gets its own mode back, an exception or not: parts that their owner keeps in evaluation mode stay so.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Dropout().eval())
        >>> with evaluating(net):
        ...     net.training
        False
        >>> net.training, net[1].training
        (True, False)
    """
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
