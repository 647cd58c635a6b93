"""Why a network cannot be traced, in the words of its user."""

import copy
from contextlib import suppress

import torch
from torch import Tensor, nn


def stops_in(net: nn.Module, inputs: Tensor) -> str:
    """In words, the module in which tracing ``net`` for any batch size stops; empty if it does not stop in one.

    Args:
        net: a network that could not be traced.
        inputs: ``[N, ...]``, N at least 2.
    """
    entered: list[str] = []
    probe = copy.deepcopy(net)
    for name, module in probe.named_modules():
        if name:
            module.register_forward_pre_hook(lambda *_, name=name: entered.append(name))
            module.register_forward_hook(lambda *_: entered.pop() and None)
    batch = torch.export.Dim("batch")
    with suppress(Exception):  # it has been raised once already
        torch.export.export(probe, (torch.zeros_like(inputs[:2]),), dynamic_shapes=({0: batch},), strict=False)
    return f" because of {entered[-1]} ({type(probe.get_submodule(entered[-1])).__name__})" if entered else ""


def first_line(error: BaseException) -> str:
    """What a tracer says, without the graph that it prints."""
    return (str(error).strip() or type(error).__name__).split("\n")[0]
