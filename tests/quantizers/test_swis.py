"""SWIS while it trains is the projection of its trained weights, bit for bit."""

from functools import partial

import pytest
import torch

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.optimizer import LatentOptimizer
from bsq_lightning.post_training import SWIS
from bsq_lightning.quantized_tensor import QuantizedTensor
from bsq_lightning.quantizers.swis import SWISQuantizer
from tests.helpers import TinyNet, batch


@pytest.mark.parametrize("consecutive", [False, True])
@pytest.mark.parametrize("shifts", [1, 2, 3, 8])
def test_before_training_it_is_what_the_method_without_training_makes(shifts: int, consecutive: bool) -> None:
    weight = torch.randn(6, 5, 3, 3)
    tensor = SWISQuantizer(weight, shifts=shifts, consecutive=consecutive).tensor()
    other = SWIS(shifts, consecutive=consecutive)(weight)
    assert torch.equal(tensor.codes, other.codes) and torch.equal(tensor.step, other.step)
    assert tensor.storage_bits() == other.storage_bits()


def test_after_every_step_it_is_the_projection_of_what_is_trained() -> None:
    net = TinyNet()
    network = QuantizedNetwork(net, partial(SWISQuantizer, shifts=2), precision=8)
    optimizer = LatentOptimizer(network, partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.0))
    images, labels = batch()
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        for name, parameter, quantizer in network.quantizers():
            step = quantizer.step()
            plain = (quantizer.relaxed() / step).round().clamp(-255, 255).to(torch.int32)  # type: ignore[operator]
            shared = SWIS(2).share(QuantizedTensor(plain, step, 8))
            assert torch.equal(parameter, shared.dequantize()), name
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize(
    ("given", "said"),
    [({"shifts": 0}, "quant.shifts"), ({"shifts": 2.5}, "quant.shifts"), ({"group": 0}, "quant.group"),
     ({"precision": 11}, "at most 10")],
)  # fmt: skip
def test_what_it_cannot_be_is_refused(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SWISQuantizer(torch.randn(2, 4), **given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a bias does not have"):
        SWISQuantizer(torch.randn(4))
