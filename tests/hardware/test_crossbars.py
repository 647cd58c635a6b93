"""Layers on crossbars: exact while no converter saturates, and by hand where one does."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.hardware.crossbars import Crossbars, InputGrid, input_grids, layer_uses, on_crossbars, split
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.ops.bit_slices import saturating_matmul
from bsq_lightning.quantized_tensor import Grid, Points, QuantizedState, QuantizedTensor
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer, relu6_or_pact
from bsq_lightning.quantizers.clipped_activation import ClippedActivation
from tests.cli.commands import TINY, run
from tests.helpers import TinyNet, batch

MACHINE = Crossbars()
WIDE = [9] * 4


def tiny(activation: object = relu6_or_pact, **arguments: object) -> QuantizedNetwork:
    torch.manual_seed(0)
    network = QuantizedNetwork(TinyNet(), BitPlaneQuantizer, activation, act_precision=4, **arguments)  # type: ignore[arg-type]
    network.count_macs_(6)
    network.eval()
    with network.observing(), torch.no_grad():
        network(batch(32)[0])
    return network


def grids(network: QuantizedNetwork, images: Tensor) -> dict[str, InputGrid]:
    return input_grids(network.net, network.state().input_bits, [images])


@pytest.mark.parametrize("activation", [relu6_or_pact, ClippedActivation])
def test_wide_converters_compute_the_network_but_for_inputs_that_are_float(activation: object) -> None:
    network = tiny(activation, precision=5)
    torch.manual_seed(0)
    images = batch(32)[0]  # those of the calibration
    found = grids(network, images)
    assert {name: grid.bits for name, grid in found.items()} == {
        "conv1": 8,
        "conv2": 4,
        "fc": 8,
    }  # pixels, codes, means
    images = (images / found["conv1"].step).round() * found["conv1"].step
    with torch.no_grad():
        plain = network(images)
        with on_crossbars(network.net, network.state(), found, WIDE, MACHINE):
            there = network(images)
        assert torch.equal(plain, network(images)), "the layers are not back"
    # The mean before fc is rounded to 8 bits: by half a step, times what its weights add up to.
    rounding = float(network.net.fc.weight.abs().sum(1).max()) * found["fc"].step / 2  # type: ignore[union-attr]
    assert 0 < float((there - plain).abs().max()) < rounding * 1.01


def test_narrow_converters_saturate_as_the_slow_form_does() -> None:
    tensor = QuantizedTensor(torch.randint(-255, 256, (7, 300), dtype=torch.int32), torch.rand(7, 1) + 0.5, 8)
    layer = nn.Linear(300, 7)
    net = nn.Sequential(layer)
    state = QuantizedState({"0": tensor})
    inputs = torch.randint(0, 16, (5, 300)).float() * 0.25
    adc = [9, 5, 9, 6]
    with torch.no_grad(), on_crossbars(net, state, {"0": InputGrid(4, 15 * 0.25)}, adc, MACHINE):
        found = net(inputs)
    slow = saturating_matmul((inputs / 0.25).int(), tensor.codes, adc, 4) * tensor.step.flatten() * 0.25
    torch.testing.assert_close(found, (slow + layer.bias).float())
    assert not torch.allclose(found, (inputs @ tensor.dequantize().T + layer.bias), rtol=1e-3)


def test_only_slices_that_can_saturate_are_computed_slowly() -> None:
    codes = torch.tensor([[1, 64], [3, -67]], dtype=torch.int32)
    parts = split(codes, [1, 1, 1, 1], 8, MACHINE)
    assert parts.safe.tolist() == [[0, 64], [0, -64]] and parts.narrow.tolist() == [[1, 0], [3, -3]]
    assert not split(codes, WIDE, 8, MACHINE).narrow.any()


def test_what_cells_cannot_hold_is_refused_by_name() -> None:
    codes, step = torch.ones(2, 3, dtype=torch.int32), torch.tensor(0.5)
    points = QuantizedTensor(codes, step, 2, "inside", Points(codes[None], torch.ones(1, 2, 1)))
    grid = QuantizedTensor(codes, step, 2, "inside", Grid(torch.tensor([0.0, 0.3, 1.0, 2.0])))
    for tensor, word in ((points, "conv1 is a sum"), (grid, "conv1 has a codebook")):
        with pytest.raises(ValueError, match=word):
            layer_uses(QuantizedState({"conv1": tensor}), MACHINE)
    with pytest.raises(ValueError, match="at least one row"):
        Crossbars(rows=0)
    wrapped = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"))
    state = QuantizedNetwork(wrapped, partial(LatentQuantizer), precision=2).state()
    with pytest.raises(ValueError, match="0: crossbars compute"):
        with on_crossbars(wrapped, state, {"0": InputGrid(8, 1.0)}, WIDE, MACHINE):
            pass
    assert wrapped(torch.ones(1, 3, 4, 4)).shape == (1, 4, 4, 4)


@pytest.mark.slow
def test_the_command_on_a_run(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = run("train", *TINY, f"hydra.run.dir={folder}", "quant=uniform", "quant.precision=3", "reg=none")
    assert code == 0, output
    code, output = run("slices", f"run={folder}", "images=200", "adc_bits=[1]")
    assert code == 0 and "slices, most significant first" in output and "test accuracy, 200 images" in output, output
    content = json.loads((folder / "slices.json").read_text())
    of_all = [row for row in content["slices"] if row["layer"] == "all layers"]
    assert [row["slice"] for row in of_all] == [3, 2, 1, 0]
    found = {each["converters"]: each["accuracy"] for each in content["accuracies"]}
    assert found["none saturates"] == pytest.approx(found["no crossbars"], abs=0.06)  # float inputs in 8 bits
    assert (folder / "slices.csv").read_text().count("\n") == 1 + len(content["slices"])
    code, output = run("slices", f"run={folder}", "images=-1")
    assert code == 1 and "images must be" in output, output
    code, output = run("slices", f"run={folder}", "images=0", "rows=64")
    assert code == 0 and "test accuracy" not in output, output
