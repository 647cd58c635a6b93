"""BSQ as the paper writes it, slow and obvious: planes are Parameters and autograd does everything."""

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.naive import naive_penalty, naive_weight
from bsq_lightning.scheme import Scheme


class OracleLayer(nn.Module):
    """One tensor: planes and scale as Parameters, weight by the straight-through rounding."""

    def __init__(self, weight: Tensor, precision: int, max_precision: int) -> None:
        super().__init__()
        self.precision, self.max_precision = precision, max_precision
        self.scale = nn.Parameter(weight.abs().max().clone())
        codes = torch.round(weight / self.scale.detach() * (2**precision - 1))
        self.expand(codes)

    def expand(self, codes: Tensor) -> None:
        positive, negative = codes.clamp(min=0).long(), (-codes).clamp(min=0).long()
        planes = [
            torch.stack([(part // 2**b) % 2 for b in range(self.precision)])
            if self.precision
            else positive.new_zeros(0, *codes.shape)
            for part in (positive, negative)
        ]
        self.planes = nn.Parameter(torch.stack(planes).to(codes.dtype))

    def value(self) -> Tensor:
        total = torch.zeros_like(self.planes[0, 0]) if self.precision else self.planes.new_zeros(self.planes.shape[2:])
        for b in range(self.precision):
            total = total + 2**b * (self.planes[0, b] - self.planes[1, b])
        return total

    def weight(self) -> Tensor:
        return naive_weight(self.planes, self.scale, clip=self.precision == self.max_precision)

    def adjust(self) -> None:
        if not self.precision:
            return
        step = self.scale.detach() / (2**self.precision - 1)
        codes = self.value().detach().round()
        if self.precision == self.max_precision:
            codes = codes.clamp(-(2**self.precision - 1), 2**self.precision - 1)
        if not codes.any():
            self.precision = 0
            self.expand(codes)
            return
        while bool((codes % 2 == 0).all()):
            codes, step = codes / 2, step * 2
        self.precision = int(codes.abs().max()).bit_length()
        self.scale = nn.Parameter(step * (2**self.precision - 1))
        self.expand(codes)


class Oracle:
    """A float network trained through ``OracleLayer`` by torch.optim.SGD over all planes."""

    def __init__(
        self, net: nn.Module, names: list[str], precision: int, max_precision: int, alpha: float, **sgd: float
    ) -> None:
        self.net, self.alpha, self.sgd = net, alpha, sgd
        self.layers = {name: OracleLayer(net.get_parameter(name).detach(), precision, max_precision) for name in names}
        self.reset()

    def reset(self) -> None:
        """A new SGD, as after an adjustment: all momentum is zero."""
        others = [p for name, p in self.net.named_parameters() if name not in self.layers]
        self.optimizer = torch.optim.SGD(
            [*others, *(p for layer in self.layers.values() if layer.precision for p in layer.parameters())], **self.sgd
        )

    def penalty(self) -> Tensor:
        return naive_penalty([layer.planes for layer in self.layers.values()], self.alpha)

    def step(self, images: Tensor, labels: Tensor) -> None:
        weights = {name: layer.weight() for name, layer in self.layers.items()}
        loss = nn.functional.cross_entropy(functional_call(self.net, weights, (images,)), labels) + self.penalty()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for layer in self.layers.values():
                layer.planes.clamp_(0, 2)
                layer.scale.clamp_(min=1e-8)

    def adjust(self) -> None:
        """Re-quantize and trim every layer, forget the momentum."""
        for layer in self.layers.values():
            layer.adjust()
        self.reset()


def same_bits(oracle: Oracle, scheme: Scheme) -> bool:
    return scheme.precisions() == {
        name.removesuffix(".weight"): layer.precision for name, layer in oracle.layers.items()
    }
