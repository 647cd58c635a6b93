"""One image through onnxruntime: ResNet-20 in floats, and quantized with basic and with all optimisations."""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from benchmarks.harness import Report, Settings, SkipRow, alternate, compare
from benchmarks.sides import layer_sizes, mixed_precisions, resnet
from bsq_lightning.exporters import export_onnx
from bsq_lightning.exporters.onnx_graph import open_session
from bsq_lightning.exporters.onnx_qdq import check_onnx
from bsq_lightning.ops.uniform import max_step, quantize
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState, QuantizedTensor


def run(settings: Settings) -> Report:
    try:
        check_onnx()
    except ModuleNotFoundError as error:
        raise SkipRow(str(error)) from error
    net = resnet(settings.choose(20, 8)).eval()
    image = torch.randn(2, 3, 32, 32)
    sides: dict[str, Callable[[], object]] = {}
    sizes = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (side, state) in {
            "float": (net, QuantizedState({})),
            "8 bits": quantized(net, dict.fromkeys(layer_sizes(net), 7)),  # 7 of magnitude and the sign
            "mixed": quantized(net, mixed_precisions(net)),
        }.items():
            path = export_onnx(Path(folder) / f"{name}.onnx", side, state, image, fold=True).path
            sizes[name] = path.stat().st_size
            for optimized in (False, True):
                word = "all" if optimized else "basic"
                sides[f"{name}, {word} optimisations"] = one_call(path, image[:1], optimized)
        report = Report()
        compare(report, "one image", alternate(sides, settings.choose(200, 3), warmup=5), {})
    report.numbers["bytes"] = sizes
    return report


def quantized(net: nn.Module, bits: dict[str, int]) -> tuple[nn.Module, QuantizedState]:
    """A copy with rounded weights and activations of 4 bits, and what is quantized in it."""
    net, tensors = copy.deepcopy(net), {}
    for name, precision in bits.items():
        weight = net.get_parameter(f"{name}.weight")
        step = max_step(weight.detach(), precision)
        codes = quantize(weight.detach(), step, precision)
        tensors[name] = QuantizedTensor(codes.to(torch.int32), step, precision)
        with torch.no_grad():
            weight.copy_(tensors[name].dequantize())
    relus = [name for name, module in net.named_modules() if isinstance(module, nn.ReLU)]
    return net, QuantizedState(tensors, tuple(QuantizedActivation(name, "output", 4, 6.0, 3.0) for name in relus))


def one_call(path: Path, image: torch.Tensor, optimized: bool) -> Callable[[], object]:
    """Runs one image."""
    own = open_session(path.read_bytes(), optimized)
    return lambda: own.run(None, {"input": image.numpy()})
