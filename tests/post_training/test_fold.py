import pytest
import torch
from torch import Tensor, nn
from torchvision.models import mobilenet_v2, resnet18

from bsq_lightning.models import resnet20
from bsq_lightning.post_training import fold_batch_norm_


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
    with pytest.raises(ValueError, match="Branching cannot be folded"):
        fold_batch_norm_(Branching())
