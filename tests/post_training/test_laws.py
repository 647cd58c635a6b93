"""Laws that every method of quantization without training keeps (post_training/base.py states them)."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.post_training import SWIS, Multipoint, PostTrainingMethod, Round, Truncate, layer_inputs, quantize_
from bsq_lightning.quantized_tensor import QuantizedState, load_state, save_state
from tests.ops.test_batch_norm import SameConv, StandardizedConv

METHODS: dict[str, Callable[[], PostTrainingMethod]] = {
    "round_max": partial(Round, 4, step="max"),
    "round_mse": partial(Round, 2),
    "round_exact_per_channel": partial(Round, 2, step="exact", per_channel=True),
    "round_to_nothing": partial(Round, 0),
    "truncate": partial(Truncate, 3),
    "multipoint": partial(Multipoint, 2),
    "multipoint_per_layer": partial(Multipoint, 3, per_channel=False, max_size=1.5),
    "multipoint_refit": partial(Multipoint, 3, refit=True, select="all", max_points=3),
    "multipoint_grid": partial(Multipoint, 3, search="grid"),
    "swis": partial(SWIS, 2),
    "swis_c": partial(SWIS, 3, consecutive=True, per_channel=True),
    "swis_mse++": partial(SWIS, 2, metric="mse++", alpha=0.25),
    "swis_scheduled": partial(SWIS, 2.5, schedule="greedy", tile=4),
}

ALL = pytest.mark.parametrize("build", METHODS.values(), ids=METHODS.keys())
SHAPES = pytest.mark.parametrize(
    "shape", [(16, 12, 3, 3), (16, 1, 3, 3), (10, 30), (16, 5, 3), (3, 1)],
    ids=["conv", "depthwise", "linear", "conv1d", "one_weight_a_channel"],
)  # fmt: skip


@ALL
@SHAPES
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_result_stands_for_the_weight(build: Callable[[], PostTrainingMethod], shape: tuple[int, ...], dtype) -> None:
    weight = torch.randn(shape, dtype=dtype)
    before = weight.clone()
    tensor = build()(weight)
    tensor.check("weight")
    assert tensor.codes.shape == weight.shape
    assert tensor.dequantize().shape == weight.shape and tensor.dequantize().dtype == dtype
    assert float((tensor.dequantize() - weight).square().sum()) <= float(weight.square().sum()) * (1 + 1e-5)
    assert torch.equal(weight, before)
    assert torch.equal(build()(weight).dequantize(), tensor.dequantize())


@ALL
def test_sign_is_symmetric_and_zero_stays_zero(build: Callable[[], PostTrainingMethod]) -> None:
    weight = torch.randn(8, 6, 3, 3)
    assert torch.equal(build()(-weight).dequantize(), -build()(weight).dequantize())
    assert not bool(build()(torch.zeros(8, 6)).dequantize().any())
    weight[3] = 0
    assert not bool(build()(weight).dequantize()[3].any())


@ALL
def test_a_file_carries_it(build: Callable[[], PostTrainingMethod], tmp_path: Path) -> None:
    tensor = build()(torch.randn(8, 6, 3, 3))
    save_state(tmp_path / "quantized.safetensors", QuantizedState({"conv": tensor}))
    again = load_state(tmp_path / "quantized.safetensors").tensors["conv"]
    assert torch.equal(again.dequantize(), tensor.dequantize())
    assert (again.storage_bits(), again.side_bits()) == (tensor.storage_bits(), tensor.side_bits())


@ALL
@pytest.mark.parametrize(
    "weight", [torch.full((4, 4), torch.nan), torch.zeros(4, 4).int(), torch.zeros(0, 4)], ids=["nan", "int", "empty"]
)
def test_what_is_no_weight_is_refused(build: Callable[[], PostTrainingMethod], weight: Tensor) -> None:
    with pytest.raises(ValueError, match="weight"):
        build()(weight)


@ALL
def test_network_holds_what_the_tensors_stand_for(build: Callable[[], PostTrainingMethod]) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(), nn.Linear(32, 5))
    images = torch.randn(4, 3, 6, 6)
    inputs = layer_inputs(net, ["0", "2", "4"], [images])
    tensors = quantize_(net, {name: build() for name in ("0", "2", "4")}, inputs)
    for name, tensor in tensors.items():
        assert torch.equal(net.get_parameter(f"{name}.weight"), tensor.dequantize())


@pytest.mark.parametrize(
    "build",
    [
        partial(Round, 17), partial(Round, -1), partial(Round, True), partial(Round, 4, step="best"),
        partial(Round, 8, step="exact"), partial(Truncate, 9), partial(Truncate, 0), partial(Multipoint, 1),
        partial(Multipoint, 4, threshold=-1.0), partial(Multipoint, 4, max_size=0.5),
        partial(Multipoint, 4, search="x"), partial(SWIS, 0), partial(SWIS, 9), partial(SWIS, 2.5),
        partial(SWIS, 2, metric="mae"), partial(SWIS, 2, group=0), partial(SWIS, 2, bits=16),
        partial(SWIS, 2, metric="mse++", alpha=float("nan")),
    ],
)  # fmt: skip
def test_what_a_method_cannot_represent_is_refused(build: Callable[[], PostTrainingMethod]) -> None:
    with pytest.raises(ValueError, match="not"):
        build()


def test_errors_name_the_layer() -> None:
    with pytest.raises(ValueError, match="layer 0: .*not finite"):
        quantize_(nn.Sequential(nn.Linear(2, 2)).apply(_spoil), {"0": Round(2)})


def _spoil(module: nn.Module) -> None:
    for parameter in module.parameters():
        nn.init.constant_(parameter, torch.inf)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, padding=1),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 2), bias=False),
        nn.Conv2d(4, 8, 3, groups=4, padding="same", bias=False),
        nn.Conv2d(4, 8, 2, groups=2, padding="same", padding_mode="reflect", bias=False),
        SameConv(4, 6, 2),
        nn.Linear(7, 6),
    ],
    ids=["plain", "strides", "depthwise_same", "reflected", "padded_by_itself", "linear"],
)
def test_layer_inputs_are_what_the_channels_multiply(layer: nn.Module) -> None:
    layer = layer.double()
    images = torch.randn(3, 4, 9, 7, dtype=torch.float64)
    weight, bias = layer.get_parameter("weight"), layer._parameters.get("bias")
    rows = layer_inputs(nn.Sequential(layer), ["0"], [images], per_batch=10**6)["0"]
    found = torch.cat([rows[g] @ part.flatten(1).T for g, part in enumerate(weight.chunk(len(rows)))], 1)
    outputs = layer(images)
    outputs = outputs.movedim(1, -1) if outputs.dim() == 4 and isinstance(layer, nn.Conv2d) else outputs
    expected = outputs.flatten(0, -2) - (0 if bias is None else bias)
    assert torch.allclose(found, expected)
    some = layer_inputs(nn.Sequential(layer), ["0"], [images, images], per_batch=10)["0"]
    assert some.shape == (len(rows), 20, rows.shape[2])


def test_layer_inputs_refuse_no_images() -> None:
    with pytest.raises(ValueError, match="no calibration image reached the weight of 0"):
        layer_inputs(nn.Sequential(nn.Linear(2, 2)), ["0"], [])
    with pytest.raises(ValueError, match="no calibration image reached the weight of 0 .StandardizedConv.*quant.skip"):
        layer_inputs(nn.Sequential(StandardizedConv(3, 4, 2)), ["0"], [torch.randn(1, 3, 5, 5)])
    with pytest.raises(ValueError, match="do not belong to 2 channels of 2"):
        Multipoint(2)(torch.randn(2, 2), inputs=torch.randn(5, 3))
