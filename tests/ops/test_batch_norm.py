import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

from bsq_lightning.models import resnet20
from bsq_lightning.ops.batch_norm import fold_batch_norm_


def settle(net: nn.Module) -> nn.Module:
    """Batch norms as training leaves them."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                assert tensor is not None
                nn.init.uniform_(tensor, 0.5, 2)
            for tensor in (module.bias.data, module.running_mean):
                assert tensor is not None
                nn.init.normal_(tensor)
    return net.double().eval()


@pytest.mark.parametrize(("build", "count"), [(resnet20, 21), (resnet18, 20), (mobilenet_v2, 52)])
def test_outputs_stay(build, count: int) -> None:
    net, images = settle(build()), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        before = net(images)
        folded = fold_batch_norm_(net)
        assert len(folded) == count
        assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())
        assert torch.allclose(net(images), before)
    assert fold_batch_norm_(net) == []


class Forked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return y + self.norm(y)


class Branching(Forked):
    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) if x.sum() > 0 else x


def test_a_convolution_that_others_read_is_left() -> None:
    assert fold_batch_norm_(Forked()) == []
    with pytest.raises(ValueError, match="Branching cannot be traced"):
        fold_batch_norm_(Branching())


class SameConv(nn.Conv2d):
    """Pads in a forward of its own, by modules of its own."""

    def __init__(self, *arguments: int) -> None:
        super().__init__(*arguments)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(self.pad(x), self.weight, self.bias, self.stride)


class StandardizedConv(nn.Conv2d):
    """Norms its weights, so that a factor in them does nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight / self.weight.norm(), self.bias)


class DoubledLinear(nn.Linear):
    """Does more with its result."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("layer", "folds"), [(SameConv(3, 4, 2), True), (StandardizedConv(3, 4, 2), False), (DoubledLinear(6, 4), False)]
)
def test_a_forward_of_its_own_is_asked(layer: nn.Module, folds: bool) -> None:
    flat = isinstance(layer, nn.Linear)
    net = settle(nn.Sequential(layer, nn.BatchNorm1d(4) if flat else nn.BatchNorm2d(4)))
    images = torch.randn(2, 6).double() if flat else torch.randn(2, 3, 6, 6).double()
    before = net(images)
    assert fold_batch_norm_(net) == ["0"] * folds
    assert torch.allclose(net(images), before)


class Flat(nn.Module):
    """Has no children, and cannot be traced."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if float(x.detach().sum()) else x


@pytest.mark.parametrize("layer", ["linear", "conv1d"])
def test_layers_of_every_kind_are_folded_and_modules_without_children_are_no_obstacle(layer: str) -> None:
    kinds = {
        "linear": (nn.Linear(4, 3), nn.BatchNorm1d(3, affine=False), torch.randn(5, 4)),
        "conv1d": (nn.Conv1d(4, 3, 2, bias=False), nn.BatchNorm1d(3), torch.randn(5, 4, 6)),
    }
    computes, norm, inputs = kinds[layer]
    norm.running_mean.normal_()  # type: ignore[union-attr]
    net = nn.Sequential(computes, norm, Flat()).double().eval()
    before = net(inputs.double())
    assert fold_batch_norm_(net) == ["0"]
    assert torch.allclose(net(inputs.double()), before)


def test_the_activation_within_timms_batch_norm_stays() -> None:
    timm = pytest.importorskip("timm")
    net = timm.create_model("tf_efficientnet_lite0").eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = net(images)
        assert len(fold_batch_norm_(net)) == 49
        assert torch.allclose(net(images), before, rtol=1e-3, atol=1e-4)
