"""A card has every field, its figures are computed from the weights, and a claim that lies is named."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torchvision.models import mobilenet_v2, resnet50

from bsq_lightning.cards import SCHEMA, Card, build_card, hold_against_config, hold_same_network
from bsq_lightning.cards.measured import count_levels, symmetric_gap, weights_of
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.post_training import SWIS, Multipoint, Round
from bsq_lightning.quantized_tensor import QuantizedState, QuantizedTensor
from bsq_lightning.quantizers import FilterQuantizer, LatentQuantizer, relu6_or_pact

FIELDS = [f"{section}.{field}" for section, fields in SCHEMA.items() for field in fields]


def network(**given: object) -> QuantizedNetwork:
    net = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.ReLU(),
        nn.Flatten(), nn.Linear(6 * 16, 5),
    )  # fmt: skip
    result = QuantizedNetwork(net, LatentQuantizer, relu6_or_pact, precision=3, act_precision=4, **given)  # type: ignore[arg-type]
    result.count_macs_(4)
    return result


def card(quantized: QuantizedNetwork) -> Card:
    return build_card(quantized.net, quantized.state(), summary={"data": {"image_size": 4}})


def test_it_is_the_same_after_it_was_written_and_none_of_its_fields_can_be_left_out() -> None:
    whole = card(network())
    again = Card.from_yaml(whole.to_yaml())
    assert again == whole and not again.differences(whole)
    assert [
        line.split(" |")[0].removeprefix("| ") for line in whole.to_markdown().splitlines()[4 : 4 + len(FIELDS)]
    ] == [field.removesuffix(".list") for field in FIELDS]
    for field in FIELDS:
        section, name = field.split(".")
        sections = copy.deepcopy(dict(whole.sections))
        del sections[section][name]  # type: ignore[attr-defined]
        with pytest.raises(ValueError, match=f"{field} is missing"):
            Card(sections)


@pytest.mark.parametrize(
    "text", ["", "[1]", "card_version: 1", "card_version: 2", "card_version: 3", "a: &a [1]\nb: [*a, *a]",
             "!!python/object:os.x {}", "{[" * 99]
)  # fmt: skip
def test_what_is_no_card_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="OTHER is not a quantization card"):
        Card.from_yaml(text, "OTHER")


def test_only_the_fields_that_differ_are_told() -> None:
    four, five = network(), network(first_last_precision=5)
    found = card(four).differences(card(five))
    assert found["weights.bits_per_layer.0"] == (3, 5) and found["layers.first.bits"] == ([3], [5])
    assert "weights.bits_per_layer.3" not in found and "activations.bits" not in found
    assert not any(name.startswith("generated_from") for name in found)


def test_bits_are_weighted_by_parameters_as_the_papers_own_code_does() -> None:
    """ResNet-50 at 4 bits, its ends at 8: the constant 4.322694 of the authors' first_last.sh (arXiv 2102.06366)."""
    with torch.device("meta"):
        net = resnet50()
    shapes = {n: m.weight.shape for n, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    zero, step = torch.zeros((), dtype=torch.int32), torch.tensor(1.0)
    tensors = {
        name: QuantizedTensor(zero.expand(shape), step, 8 if name in ("conv1", "fc") else 4)
        for name, shape in shapes.items()
    }
    scheme = QuantizedState(tensors).scheme()
    assert scheme.size == 25_502_912 and round(scheme.mean_precision, 6) == 4.322694
    small = {name: replace(tensor, codes=zero.expand(1, 1)) for name, tensor in tensors.items()}
    found = weights_of(QuantizedState(small))
    assert found["bits_mean_unweighted"] == found["bits_mean_param_weighted"] == pytest.approx(4 + 8 / len(shapes))


def test_kinds_of_layers_are_found_in_the_architecture() -> None:
    found = card(network())
    assert found["layers.depthwise"] == {"quantized": "yes", "bits": [3]}
    assert found["layers.batchnorm"] == {"quantized": "no", "bits": 32, "layers": 1}
    assert found["layers.biases"]["quantized"] == "no" and found["layers.embeddings"]["quantized"] == "n/a"
    assert found["layers.unquantized_parameter_fraction"] == pytest.approx(1 - 696 / (696 + 6 + 6 + 5 + 12))
    # The image has 3 x 16 pixels of 8 bits; two layers read 6 x 16 activations of 4.
    assert found["activations.mean_bits_elementwise"] == (48 * 8 + 96 * 4 * 2) / (48 + 96 * 2)
    assert found["activations.max_feature_map_bits"] == 48 * 8
    worst = found["accumulation.worst_case_bits_per_layer"]
    assert worst["3"] <= 4 + 4 + 4 and worst["6"] <= 4 + 4 + 7  # ceil(log2 9), ceil(log2 96)
    skipped = card(network(skip=["3"]))
    assert skipped["layers.float_layers"] == ["3"] and skipped["layers.depthwise"]["quantized"] == "no"


def test_bits_of_filters_are_told() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    quantized = QuantizedNetwork(net, FilterQuantizer, precision=3)
    quantized.adjust_precision_({"2": [0, 1, 4, 2]})
    found = card(quantized)
    assert found["weights.bits_per_layer"]["2"] == 1.75 and found["weights.bitwidths_used"] == [0, 1, 2, 3, 4]
    assert found["weights.granularity"] == "output channel"
    assert found["method.mixed_precision"] == "channels"
    assert found["arithmetic.special_hardware"] == ["bits of each filter, or one width for all"]
    # Steps, and for the bits of each filter two bits in the outer layers, three in that with filters of four.
    assert found["cost.overhead_bits"] == 32 * (4 + 3 + 2) + 2 * 4 + 3 * 4 + 2 * 2


def test_float_weights_are_told_without_the_folders_of_this_machine() -> None:
    quantized = network()
    config = {"model": {"weights": "/home/me/runs/float.ckpt"}}
    found = build_card(quantized.net, quantized.state(), config=config)
    assert found["model.float_weights"] == {"value": "float.ckpt", "source": "config"}
    assert "/home" not in found.to_yaml()


def test_depthwise_convolutions_of_a_known_network() -> None:
    net = mobilenet_v2(weights=None)
    quantized = QuantizedNetwork(net, LatentQuantizer, precision=4, skip=["features.1.conv.0.0"])
    assert build_card(net, quantized.state())["layers.depthwise"] == {"quantized": "16 of 17", "bits": [4]}


def test_a_symmetric_range_wastes_what_the_shorter_side_lacks() -> None:
    codes = torch.tensor([-10, 7, 0], dtype=torch.int32)
    assert symmetric_gap([QuantizedTensor(codes, torch.tensor(0.1), 4)]) == pytest.approx(0.2345, abs=1e-4)
    assert symmetric_gap([QuantizedTensor(codes.abs(), torch.tensor(0.1), 4)]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("method", "at_most"),
    [(Round(2), 7), (Round(2, per_channel=True), 7), (SWIS(1, bits=4), 9), (Multipoint(3, 0.0, 2), 49)],
)  # fmt: skip
def test_levels_are_counted(method: object, at_most: int) -> None:
    tensor = method(torch.randn(4, 8, 3, 3), inputs=torch.randn(1, 5, 72))  # type: ignore[operator]
    each = [len(row.unique()) for row in tensor.dequantize().flatten(1)]
    whole = len(tensor.dequantize().unique())
    assert count_levels(tensor) == (max(each) if tensor.step.dim() else whole) <= at_most


def test_other_weights_than_those_of_the_checkpoint_are_named() -> None:
    state = network().state()
    hold_same_network(state, state)
    codes = state.tensors["3"].codes.clone()
    codes[0] = -codes[0]
    changed = replace(state, tensors={**state.tensors, "3": replace(state.tensors["3"], codes=codes)})
    with pytest.raises(ValueError, match="weights: those of 3 differ"):
        hold_same_network(state, changed)
    with pytest.raises(ValueError, match="activations: bits, clips or ranges"):
        hold_same_network(state, replace(state, activations=state.activations[:1]))


CLAIMS = {
    "weights.bits_per_layer": {"knob": "quant.precision", "precision": 4},
    "weights.bits_per_layer: 0 has 3 bits": {
        "knob": "quant.precision", "precision": 3, "first_last_precision": 8,
    },
    "weights.allowed_bitwidths": {"max_precision": 2},
    "weights.bits_mean_param_weighted": {"mean_bits": 2.5},
    "layers.float_layers": {"skip": ["*3"]},
    "layers.biases": {"quantized_biases": ["6"]},
    "activations.bits": {"activation": {"_target_": "x"}, "act_precision": 8},
    "activations.bits: 3 has 4 bits": {"activation": {"_target_": "x"}, "act_precision": 0},
    "activations.static": {"calibration_batches": 3},
}  # fmt: skip


@pytest.mark.parametrize(("field", "quant"), CLAIMS.items())
def test_a_config_that_lies_is_told_which_field(field: str, quant: dict[str, object]) -> None:
    state = network().state()
    honest = {"precision": 3, "knob": "quant.precision", "act_precision": 4, "activation": {"_target_": "x"}}
    hold_against_config(state, {"quant": honest})
    with pytest.raises(ValueError, match=field):
        hold_against_config(state, {"quant": {"method": "x", **quant}})


@pytest.mark.parametrize(
    ("field", "ptq"), [
        ("arithmetic.shifts_per_weight", {"shifts": 3, "schedule": "uniform"}),
        ("arithmetic.shifts_per_weight", {"shifts": 1, "schedule": "greedy"}),
        ("arithmetic.special_hardware", {"shifts": 2, "schedule": "uniform", "group": 8}),
        ("arithmetic.special_hardware", {"shifts": 2, "schedule": "uniform", "consecutive": True}),
        ("weights.granularity", {"per_channel": True}),
        ("weights.bits_per_layer", {"precision": 3}),
    ],
)  # fmt: skip
def test_a_config_that_lies_about_a_method_without_training(field: str, ptq: dict[str, object]) -> None:
    state = QuantizedState({name: SWIS(2, group=4)(torch.randn(8, 8)) for name in ("a", "b", "c")})
    quant = {"knob": "ptq.precision" if "precision" in ptq else "ptq.shifts"}
    hold_against_config(
        state, {"quant": quant, "ptq": {"precision": 8, "shifts": 2, "schedule": "uniform", "group": 4}}
    )
    with pytest.raises(ValueError, match=field):
        hold_against_config(state, {"quant": quant, "ptq": ptq})
    if "shifts" in ptq:  # the same of quant=swis
        with pytest.raises(ValueError, match=f"{field}.*quant"):
            hold_against_config(state, {"quant": {**quant, **ptq}})


def test_a_float_network_has_none() -> None:
    net = nn.Linear(2, 2)
    with pytest.raises(ValueError, match="nothing is quantized"):
        build_card(net, QuantizedNetwork(net).state())
