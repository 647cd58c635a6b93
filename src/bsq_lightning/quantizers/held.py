"""A weight that something else has quantized: it is kept, and learns nothing."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.quantized_tensor import QuantizedTensor, from_parts, to_parts
from bsq_lightning.quantizers.base import WeightQuantizer

PART = "part/"  # before the names of buffers: `codes` is a method


class HeldTensor(WeightQuantizer):
    """Holds any quantized tensor, whatever its method needs beyond codes and a step; before ``hold_``, zeros.

    Args:
        weight: tensor whose shape it has.
        precision: not looked at; the bits are those of the tensor that is held.

    Example:
        >>> held = HeldTensor(torch.zeros(2))
        >>> held.hold_(QuantizedTensor(torch.tensor([3, -1], dtype=torch.int32), torch.tensor(0.5), precision=2))
        >>> held.weight(), held.precision
        (tensor([ 1.5000, -0.5000]), 2)
    """

    def __init__(self, weight: Tensor, precision: int = 0) -> None:
        super().__init__()
        self._note: dict[str, Any] = {}
        self.hold_(QuantizedTensor(torch.zeros_like(weight, dtype=torch.int32), weight.detach().new_zeros(()), 0))

    def hold_(self, tensor: QuantizedTensor) -> None:
        """Takes ``tensor`` in the place of what it held."""
        parts, self._note = to_parts(tensor)
        self._buffers.clear()
        for key, part in parts.items():
            self.register_buffer(PART + key.replace(".", "/"), part)  # torch refuses dots

    @property
    def precision(self) -> int:
        """Bits of one code; a mean, with a fraction, where its method mixes them."""
        return self._note["precision"]

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.get_buffer(f"{PART}codes").shape)

    def tensor(self) -> QuantizedTensor:
        return from_parts("the tensor", _with_dots(self._buffers), self._note)

    def codes(self) -> Tensor:
        return self.get_buffer(f"{PART}codes").to(self.step().dtype)

    def step(self) -> Tensor:
        return self.get_buffer(f"{PART}step")

    def weight(self) -> Tensor:
        return self.tensor().dequantize()

    def latents(self) -> Sequence[nn.Parameter]:
        return ()

    def get_extra_state(self) -> Any:
        return self._note

    def set_extra_state(self, state: Any) -> None:
        """Done by then: the arrays could not have been loaded without."""

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        given = {k.removeprefix(prefix): v for k, v in state_dict.items() if k.startswith(prefix)}
        note = given.pop("_extra_state", None)
        name = prefix.removesuffix(".")
        try:
            tensor = from_parts(name, _with_dots(given), note)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{name} holds no quantized tensor ({type(error).__name__}: {error})") from error
        if tuple(tensor.codes.shape) == self.shape:  # else torch says so, as of every other tensor
            device = self.step().device
            self.hold_(tensor)
            self.to(device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _with_dots(parts: Any) -> dict[str, Tensor]:
    return {key.removeprefix(PART).replace("/", "."): part for key, part in parts.items()}
