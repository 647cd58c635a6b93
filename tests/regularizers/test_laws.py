import pytest
import torch

from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer
from bsq_lightning.regularizers import BitGroupLasso, Regularizer
from tests.helpers import REGULARIZERS, TinyNet

ALL = pytest.mark.parametrize("build", REGULARIZERS.values(), ids=REGULARIZERS.keys())


@ALL
def test_closed_form_is_autograd(build: type[Regularizer]) -> None:
    network = QuantizedNetwork(TinyNet().double(), BitPlaneQuantizer, precision=4)
    quantizers = {name: quantizer for name, _, quantizer in network.quantizers()}
    regularizer = build(alpha=0.3)
    for quantizer in quantizers.values():
        quantizer.planes.data.uniform_()
        quantizer.planes.requires_grad_(True)
    value = regularizer.penalty(quantizers)
    value.backward()
    closed = regularizer.plane_decay(quantizers, {})
    if closed is None:
        pytest.skip(f"{type(regularizer).__name__} has no closed form")
    assert torch.allclose(closed[0], value.detach(), rtol=1e-14)
    for name, quantizer in quantizers.items():
        expected = closed[1][name].view(1, -1, *[1] * (quantizer.planes.dim() - 2)) * quantizer.planes.detach()
        assert torch.allclose(quantizer.planes.grad, expected, rtol=1e-13)


@ALL
@pytest.mark.parametrize("alpha", [-1e-3, float("nan"), float("inf"), "strong", True])
def test_alpha_must_be_a_number_that_is_not_negative(build: type[Regularizer], alpha: object) -> None:
    with pytest.raises(ValueError, match="reg.alpha must be a number"):
        build(alpha=alpha)


def test_group_lasso_by_hand() -> None:
    # Two layers of 1 and 3 weights at 1 and 2 bits: alpha / 4 * (1*1*1 + 3*2*(sqrt(2) + 1))
    one = BitPlaneQuantizer(torch.tensor([1.0], dtype=torch.float64), precision=1)
    two = BitPlaneQuantizer(torch.tensor([1.0, -1 / 3, 2 / 3], dtype=torch.float64), precision=2)
    expected = 0.5 / 4 * (1 + 6 * (2**0.5 + 2**0.5))
    assert float(BitGroupLasso(alpha=0.5).penalty({"a": one, "b": two})) == pytest.approx(expected, rel=1e-7)


def test_nothing_to_press_on_is_an_error() -> None:
    with pytest.raises(ValueError, match="needs bit planes"):
        BitGroupLasso(alpha=1.0).check({"fc": LatentQuantizer(torch.ones(3))})
