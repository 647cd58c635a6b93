"""A held tensor is the tensor, whatever its method needs, also after a state dict."""

from collections.abc import Callable
from functools import partial

import pytest
import torch

from bsq_lightning.post_training import SWIS, Multipoint, PostTrainingMethod, Round
from bsq_lightning.quantizers import HeldTensor

METHODS = {
    "round": partial(Round, 3),
    "multipoint": partial(Multipoint, 3, select="all", max_points=3),
    "swis": partial(SWIS, 2.5, schedule="greedy", tile=4, per_channel=True),
}


@pytest.mark.parametrize("build", METHODS.values(), ids=METHODS.keys())
def test_what_is_held_survives_a_state_dict(build: Callable[[], PostTrainingMethod]) -> None:
    weight = torch.randn(8, 6, 3, 3)
    tensor = build()(weight)
    held, other = HeldTensor(weight), HeldTensor(weight)
    assert not bool(held.weight().any()) and held.precision == 0
    held.hold_(tensor)
    other.load_state_dict(held.state_dict())
    for each in (held, other):
        assert torch.equal(each.weight(), tensor.dequantize()) and each.precision == tensor.precision
        assert (each.tensor().storage_bits(), each.tensor().side_bits()) == (tensor.storage_bits(), tensor.side_bits())
        assert torch.equal(each.codes(), tensor.codes.float()) and not each.latents()


def test_a_state_dict_of_something_else_is_refused() -> None:
    held = HeldTensor(torch.randn(4, 3))
    state = held.state_dict()
    with pytest.raises(ValueError, match="holds no quantized tensor"):
        held.load_state_dict({key: value for key, value in state.items() if not key.endswith("codes")})
    with pytest.raises(RuntimeError, match="size mismatch"):
        held.load_state_dict(HeldTensor(torch.randn(5, 3)).state_dict())
    with pytest.raises(ValueError, match="precision of 99"):
        held.load_state_dict({**state, "_extra_state": {"precision": 99, "sign": "extra"}})
