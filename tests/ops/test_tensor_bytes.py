"""Bytes kept for the backward pass, counted without running it, against a real run and against arithmetic by hand."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.models import ResNetCifar, resnet20
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.tensor_bytes import saved_bytes, tensor_bytes
from bsq_lightning.quantizers import BitPlaneQuantizer, relu6_or_pact
from tests.helpers import TinyNet


def really_saved(net: nn.Module, shape: tuple[int, ...], arithmetic: torch.dtype) -> int:
    """Runs the network on the CPU and looks at every tensor that autograd keeps."""
    own = {tensor.data_ptr() for tensor in (*net.parameters(), *net.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", arithmetic, enabled=arithmetic != torch.float32),
    ):
        output = net(torch.randn(shape))
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


NETS: dict[str, Callable[[], nn.Module]] = {
    "tiny": TinyNet,
    "resnet8": lambda: ResNetCifar(8),
    "4 bits": lambda: QuantizedNetwork(ResNetCifar(8), BitPlaneQuantizer, relu6_or_pact, act_precision=4),
    "2 bits": lambda: QuantizedNetwork(TinyNet(), BitPlaneQuantizer, relu6_or_pact, act_precision=2),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("images", [2, 5])
def test_counted_bytes_are_those_of_a_real_run(name: str, images: int) -> None:
    net, shape = NETS[name](), (images, 3, 16, 16)
    assert saved_bytes(net, shape) == really_saved(net, shape, torch.float32) > 0
    # The CPU's kernels for bfloat16 keep the statistics of batch norm in it, the general ones in float32.
    half = really_saved(net, shape, torch.bfloat16)
    assert saved_bytes(net, shape, torch.bfloat16) == pytest.approx(half, rel=0.02)


@pytest.mark.parametrize("images", [1, 128])
def test_resnet20_by_hand(images: int) -> None:
    # Every convolution's output (batch norm keeps its input) and every ReLU's, at three sizes; two shortcuts; the
    # pooled features. Once a batch: mean and deviation of every channel of 21 batch norms.
    maps = 16 * 32 * 32 * (7 + 7) + 32 * 16 * 16 * (7 + 6) + 64 * 8 * 8 * (7 + 6)
    statistics = 2 * (16 * 7 + 32 * 7 + 64 * 7)
    assert saved_bytes(resnet20(), (images, 3, 32, 32)) == 4 * (images * (3 * 32 * 32 + maps + 64) + statistics)


def test_nothing_in_the_network_changes() -> None:
    net = TinyNet()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    rng = torch.get_rng_state()
    saved_bytes(net, (4, 3, 8, 8))
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_shared_storage_counts_once() -> None:
    base = torch.zeros(100)
    assert tensor_bytes([base, base[10:], base.view(10, 10)]) == 400
    assert tensor_bytes([]) == 0
