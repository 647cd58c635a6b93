"""DoReFa against its paper, its sizes, and PACT, which goes with it."""

from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.quantized_tensor import load_state, save_state
from bsq_lightning.quantizers import PACT
from bsq_lightning.quantizers.activation import ClipAt
from bsq_lightning.quantizers.dorefa import DoReFaQuantizer
from tests.helpers import TinyNet


def papers(weight: Tensor, k: int) -> Tensor:
    """Equations 5 and 9 with k bits in all."""
    x = weight.tanh() / (2 * weight.tanh().abs().max()) + 0.5
    return 2 * (((2**k - 1) * x).round() / (2**k - 1)) - 1


@pytest.mark.parametrize("precision", [1, 2, 4, 7])
def test_weights_are_the_papers_of_one_bit_more(precision: int) -> None:
    weight = torch.randn(50, 40, dtype=torch.float64)
    quantizer = DoReFaQuantizer(weight, precision)
    assert torch.allclose(quantizer.weight(), papers(weight, precision + 1), rtol=0, atol=1e-15)
    codes = quantizer.codes()
    assert bool((codes.remainder(2) == 1).all()), "a code that is even, such as zero"
    assert float(codes.max()) <= 2 ** (precision + 1) - 1 and len(codes.unique()) == 2 ** (precision + 1)


def test_a_file_holds_it_and_counts_one_bit_more_than_the_magnitude_and_no_codebook(tmp_path: Path) -> None:
    network = QuantizedNetwork(TinyNet(), partial(DoReFaQuantizer, scale="fit", per_channel=True), precision=3)
    save_state(tmp_path / "q.safetensors", network.state())
    tensors = load_state(tmp_path / "q.safetensors").tensors
    for name, parameter, _ in network.quantizers():
        count = parameter.numel()
        assert torch.equal(tensors[name].dequantize(), parameter)
        assert tensors[name].magnitude_bits() == 3 * count and tensors[name].storage_bits() == 4 * count
        assert tensors[name].side_bits() == 32 * len(parameter)
    assert network.scheme().mean_precision == 3


def test_a_fitted_scale_keeps_the_size_of_the_weights() -> None:
    weight = 0.01 * torch.randn(3, 500, dtype=torch.float64) * torch.tensor([[1.0], [5.0], [0.0]])
    for per_channel in (False, True):
        quantizer = DoReFaQuantizer(weight, precision=4, scale="fit", per_channel=per_channel)
        error = (quantizer.weight() - weight).norm() / weight.norm()
        assert float(error) < (0.06 if per_channel else 0.15)
    assert not quantizer.weight()[2].any(), "a channel of zeros"
    gradient = quantizer.latent_gradients(quantizer.weight(), torch.randn_like(weight))[0]
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize("scale", [0, -1.0, "max"])
def test_another_scale_is_refused(scale: object) -> None:
    with pytest.raises(ValueError, match="scale must be a positive number"):
        DoReFaQuantizer(torch.ones(3), scale=scale)  # type: ignore[arg-type]


def test_the_clip_of_pact_has_the_gradient_and_the_decay_of_the_paper() -> None:
    """dy/dclip is 1 where x is at or above the clip, else 0; L2 with the weights' strength."""
    network = QuantizedNetwork(TinyNet(), DoReFaQuantizer, partial(PACT, clip=0.5), precision=2, act_precision=3)
    quantizer: PACT = next(iter(network.activation_quantizers.values()))  # type: ignore[assignment]
    x = torch.tensor([0.1, 0.4, 0.5, 2.0])
    quantizer(x).sum().backward()
    assert float(quantizer.alpha.grad) == 2.0
    quantizer.alpha.grad = torch.zeros(())
    LatentOptimizer(network, partial(torch.optim.SGD, lr=0.1, weight_decay=0.2)).step()
    assert quantizer.alpha.item() == pytest.approx(0.5 * (1 - 0.1 * 0.2))


def test_a_whole_number_starts_the_clip_too() -> None:
    assert PACT(2, clip=3).clip_value() == 3.0


def test_an_untrained_network_trains() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3))
    network = QuantizedNetwork(net, DoReFaQuantizer, precision=1)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.02, momentum=0.9))
    x = torch.randn(60, 6)
    labels = x[:, :3].argmax(1)
    losses = []
    for _ in range(150):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), labels)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_clip_is_torchs_clamp_with_its_gradients(dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 8, 8).mul(2).to(dtype)
    x[x.abs() == 1.5] = 0  # where torch shares the gradient
    found = []
    for clip in (ClipAt.apply, lambda x, a: torch.clamp(x, -a.to(x.dtype), a.to(x.dtype))):
        inputs, alpha = x.clone().requires_grad_(), torch.tensor(1.5, requires_grad=True)
        torch.manual_seed(1)
        out = clip(inputs, alpha)
        out.backward(torch.randn(x.shape).to(dtype))
        assert inputs.grad is not None and alpha.grad is not None
        found.append((out.detach(), inputs.grad, alpha.grad))
    assert torch.equal(found[0][0], found[1][0]) and torch.equal(found[0][1], found[1][1])
    torch.testing.assert_close(found[0][2], found[1][2], rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-4)
