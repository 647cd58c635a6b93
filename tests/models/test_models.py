"""The architectures: sizes, shapes, one ReLU module for every use, and strict loading of float weights."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bsq_lightning import models
from bsq_lightning.models import ResNetCifar, load_float_weights, resnet20, resnet110, vgg19_bn

DEPTHS = (20, 32, 44, 56, 110)


def relu_calls(net: nn.Module, images: torch.Tensor) -> dict[str, int]:
    """How often every ReLU module runs in one forward pass, by name."""
    calls = {name: 0 for name, module in net.named_modules() if isinstance(module, nn.ReLU)}
    for name in calls:
        net.get_submodule(name).register_forward_hook(lambda *_, name=name: calls.update({name: calls[name] + 1}))
    with torch.no_grad():
        net(images)
    return calls


def test_resnet20_has_the_papers_size() -> None:
    net = resnet20()
    assert sum(parameter.numel() for parameter in net.parameters()) == 272_474
    weights = {
        name: module.weight.numel()
        for name, module in net.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and "downsample" not in name
    }
    assert len(weights) == 20
    assert sum(weights.values()) == 268_336


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("shortcut", ["A", "B"])
def test_resnets_have_their_depth_and_output_shape(depth: int, shortcut: str) -> None:
    factory: Callable[..., ResNetCifar] = getattr(models, f"resnet{depth}")
    net = factory(num_classes=7, shortcut=shortcut).eval()
    main_path = [name for name, m in net.named_modules() if isinstance(m, nn.Conv2d) and "downsample" not in name]
    assert len(main_path) + 1 == depth
    with torch.no_grad():
        assert net(torch.randn(2, 3, 32, 32)).shape == (2, 7)
        assert net(torch.randn(2, 3, 16, 16)).shape == (2, 7)


def test_width_is_how_many_times_as_many_channels() -> None:
    weights = {width: sum(p.numel() for p in ResNetCifar(20, width=width).parameters() if p.dim() == 4)
               for width in (1, 2)}  # fmt: skip
    first = 3 * 16 * 9  # takes the image, whose channels stay 3
    assert weights[2] - 2 * first == 4 * (weights[1] - first)
    with pytest.raises(ValueError, match="model.width"):
        ResNetCifar(20, width=0)


def test_shortcut_a_has_no_parameters_and_keeps_every_second_pixel() -> None:
    net = resnet20(shortcut="A")
    assert not any("downsample" in name for name in net.state_dict())
    x = torch.randn(1, 16, 5, 5)
    y = net.get_submodule("layer2.0.downsample")(x)
    assert y.shape == (1, 32, 3, 3)
    assert torch.equal(y[:, 8:24], x[:, :, ::2, ::2])
    assert y[:, :8].abs().sum() == y[:, 24:].abs().sum() == 0


@pytest.mark.parametrize(("factory", "uses"), [(resnet20, 19), (resnet110, 109), (vgg19_bn, 16)])
def test_every_use_of_relu_is_a_module_of_its_own(factory: Callable[[], nn.Module], uses: int) -> None:
    calls = relu_calls(factory().eval(), torch.randn(1, 3, 32, 32))
    assert len(calls) == uses
    assert set(calls.values()) == {1}


def test_relu_of_a_block_comes_after_the_addition() -> None:
    net = resnet20().eval()
    block = net.layer2[0]
    with torch.no_grad():
        assert block(torch.randn(2, 16, 8, 8)).min() == 0


def test_vgg19_shape_and_convolutions() -> None:
    net = vgg19_bn(num_classes=100).eval()
    assert sum(isinstance(module, nn.Conv2d) for module in net.modules()) == 16
    with torch.no_grad():
        assert net(torch.randn(1, 3, 32, 32)).shape == (1, 100)


def test_wrong_arguments_say_what_is_right() -> None:
    with pytest.raises(ValueError, match="A .* or B .*'C'"):
        resnet20(shortcut="C")
    with pytest.raises(ValueError, match="6n . 2 layers, not 21"):
        ResNetCifar(21)


def test_reference_weights_load_strictly() -> None:
    path = Path(os.environ.get("BSQ_DATA", "")) / "resnet20_cifar10_float.pt"
    if "BSQ_DATA" not in os.environ or not path.is_file():
        pytest.skip("needs resnet20_cifar10_float.pt in the folder that BSQ_DATA names")
    net = resnet20()
    load_float_weights(net, path)
    expected = torch.load(path, weights_only=True)
    assert net.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "model.", "network.net."])
@pytest.mark.parametrize("nested", [False, True])
def test_weights_load_with_a_wrappers_prefix(tmp_path: Path, prefix: str, nested: bool) -> None:
    source, net = resnet20(), resnet20()
    state = {prefix + name: value for name, value in source.state_dict().items()}
    if prefix == "network.net.":
        state["activations.relu.range"] = torch.ones(1)
    torch.save({"state_dict": state, "epoch": 3} if nested else state, tmp_path / "w.pt")
    load_float_weights(net, tmp_path / "w.pt")
    assert all(torch.equal(value, source.state_dict()[name]) for name, value in net.state_dict().items())


def test_a_network_with_a_child_called_net_keeps_its_names(tmp_path: Path) -> None:
    net = nn.Sequential()
    net.add_module("net", nn.Linear(2, 2))
    torch.save(net.state_dict(), tmp_path / "w.pt")
    load_float_weights(net, tmp_path / "w.pt")


def test_mismatch_names_file_keys_and_counts_and_changes_nothing(tmp_path: Path) -> None:
    state = resnet20(num_classes=100).state_dict()
    del state["bn1.weight"]
    state["extra"] = torch.zeros(1)
    torch.save(state, tmp_path / "other.pt")
    net = resnet20()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(ValueError, match="other.pt") as caught:
        load_float_weights(net, tmp_path / "other.pt")
    for part in (
        "1 missing (bn1.weight)",
        "1 unexpected (extra)",
        "2 of another shape",
        "(100, 64) instead of (10, 64)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_missing_truncated_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="model.weights"):
        load_float_weights(resnet20(), tmp_path / "none.pt")
    torch.save(resnet20().state_dict(), tmp_path / "whole.pt")
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    (tmp_path / "empty.pt").write_bytes(b"")
    torch.save({"weights": [1, 2]}, tmp_path / "other.pt")
    for name in ("cut.pt", "empty.pt", "other.pt"):
        with pytest.raises(ValueError, match=rf"{name}.*[Oo]nly plain tensors"):
            load_float_weights(resnet20(), tmp_path / name)


class Payload:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[Path]]:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("as_zip", [False, True])
def test_code_in_a_file_is_not_run(tmp_path: Path, as_zip: bool) -> None:
    marker = tmp_path / "was_run"
    if as_zip:
        torch.save({"state_dict": Payload(marker)}, tmp_path / "hostile.pt")
    else:
        (tmp_path / "hostile.pt").write_bytes(pickle.dumps({"state_dict": Payload(marker)}, protocol=2))
    with pytest.raises(ValueError, match="hostile.pt.*only plain tensors|hostile.pt.*Only plain tensors"):
        load_float_weights(resnet20(), tmp_path / "hostile.pt")
    assert not marker.exists()


def test_safetensors_are_read_too(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    source, target = resnet20(), resnet20()
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    load_float_weights(target, tmp_path / "weights.safetensors")
    assert torch.equal(source.fc.weight, target.fc.weight)
    (tmp_path / "weights.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ValueError, match="weights.safetensors"):
        load_float_weights(target, tmp_path / "weights.safetensors")
