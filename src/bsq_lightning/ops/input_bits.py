"""How many bits each layer reads: followed through one forward pass, because a network tells it nowhere."""

from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from bsq_lightning.ops.one_image import blank_image, show_

FLOAT, PIXEL = 32, 8
#: What leaves values on their grid, or (averages) is rounded to it again on hardware.
KEEPS = frozenset((
    "view", "_unsafe_view", "reshape", "alias", "detach", "clone", "expand", "permute", "transpose", "t", "squeeze",
    "unsqueeze", "select", "slice", "split", "split_with_sizes", "chunk", "unbind", "cat", "stack", "constant_pad_nd",
    "relu", "relu_", "hardtanh", "hardtanh_", "clamp", "native_dropout", "mean", "avg_pool2d", "_adaptive_avg_pool2d",
    "adaptive_avg_pool2d", "max_pool2d_with_indices", "max_pool2d", "upsample_nearest2d",
))  # fmt: skip
LAYERS = frozenset(("convolution", "addmm", "mm", "bmm", "baddbmm", "linear", "scaled_dot_product_attention"))


class _Follow(TorchDispatchMode):
    """Keeps the bits of every tensor that passes; what is not known is float."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self.kept: list[Tensor] = []  # alive, so that no two share an id
        self.bits: dict[int, int] = {}
        self.pixels: set[int] = set()
        self.say(image, PIXEL)
        self.pixels.add(id(image))

    def say(self, tensor: Tensor, bits: int) -> None:
        self.kept.append(tensor)
        self.bits[id(tensor)] = bits
        self.pixels.discard(id(tensor))

    def of(self, tensor: Tensor) -> int:
        return self.bits.get(id(tensor), FLOAT)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = list(_tensors((args, kwargs or {})))
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        read = [self.of(tensor) for tensor in inputs if id(tensor) in self.bits]
        # Arithmetic on the image alone (another normalization) still gives one of 256 values a channel.
        image = name not in LAYERS and any(id(tensor) in self.pixels for tensor in inputs)
        image = image and all(id(tensor) in self.pixels or id(tensor) not in self.bits for tensor in inputs)
        for tensor in _tensors(result):
            if image:
                self.say(tensor, PIXEL)
                self.pixels.add(id(tensor))
            else:
                self.say(tensor, max(read, default=FLOAT) if name in KEEPS else FLOAT)
        return result


def _tensors(value: Any) -> Iterable[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _tensors(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _note(follow: _Follow, found: dict[str, int], name: str, module: nn.Module, args: Any) -> None:
    found.setdefault(name, follow.of(args[0]))


def _say(follow: _Follow, bits: int, module: nn.Module, args: Any, output: Tensor) -> None:
    follow.say(output, bits)


def bits_of_inputs(
    net: nn.Module, layers: Mapping[str, nn.Module], quantizers: Mapping[nn.Module, int], image_size: int
) -> dict[str, int]:
    """Bits of what each layer reads: 8 for pixels, those of a quantizer's output, 32 for floats.

    Pooling, concatenation and ReLU leave values as they are; a sum of two quantized activations is float.

    Args:
        net: the network, with its quantizers hooked in.
        layers: what to ask about, by name.
        quantizers: modules whose output is quantized, with their bits.
        image_size: side of an image ``[1, 3, image_size, image_size]``.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
        >>> bits_of_inputs(net, {"conv": net[0], "fc": net[3]}, {net[1]: 4}, image_size=4)
        {'conv': 8, 'fc': 4}
    """
    image = blank_image(net, image_size)
    found: dict[str, int] = {}
    follow = _Follow(image)
    hooks = [layer.register_forward_pre_hook(partial(_note, follow, found, name)) for name, layer in layers.items()]
    hooks += [module.register_forward_hook(partial(_say, follow, bits)) for module, bits in quantizers.items()]
    try:
        with follow:
            show_(net, image)
    finally:
        for hook in hooks:
            hook.remove()
    return found
