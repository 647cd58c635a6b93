"""Bytes of tensors, and of what a forward pass keeps for the backward pass, without running it."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call


def tensor_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of the tensors, where several in one storage count once.

    Example:
        >>> weight = torch.zeros(10, 10)
        >>> tensor_bytes([weight, weight.T, torch.zeros(3, dtype=torch.uint8)])
        403
    """
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage() for tensor in tensors}
    return sum(storage.nbytes() for storage in storages.values())


def saved_bytes(net: nn.Module, images: tuple[int, ...], arithmetic: torch.dtype = torch.float32) -> int:
    """Bytes that a training forward pass over images of this shape keeps for the backward pass.

    Parameters and buffers are not counted, the images are, and so are the casts of the weights under autocast. The
    pass runs on tensors that have shapes but no content: it takes no memory and well under a second at any batch
    size, and changes nothing in the network.

    Args:
        net: any network; its mode (training or evaluation) stays as it is.
        images: shape ``[B, 3, H, W]``.
        arithmetic: below float32, the type of autocast.

    Raises:
        Exception: the network's forward pass asks for the content of a tensor.

    Example:
        >>> saved_bytes(nn.Sequential(nn.Conv2d(3, 8, 1, bias=False), nn.ReLU()), (2, 3, 4, 4))
        1408
    """
    kept: list[Tensor] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with FakeTensorMode() as mode:
        real = {**dict(net.named_parameters()), **dict(net.named_buffers())}
        state: dict[str, Tensor] = {name: mode.from_tensor(tensor) for name, tensor in real.items()}
        own = {tensor.untyped_storage()._cdata for tensor in state.values()}
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", arithmetic, enabled=arithmetic != torch.float32),
        ):
            # The output must live until all is counted: storages of freed tensors would be given out again.
            output = functional_call(net, state, (torch.empty(images),))
        saved = tensor_bytes(tensor for tensor in kept if tensor.untyped_storage()._cdata not in own)
        del output
    return saved
