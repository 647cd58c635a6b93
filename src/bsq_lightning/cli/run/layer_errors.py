"""What a method without training did to each layer: measured once, kept in the run folder, printed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from torch import Tensor

from bsq_lightning.files import read_json, write_whole
from bsq_lightning.post_training import output_errors
from bsq_lightning.post_training.multipoint import factors, points_of
from bsq_lightning.quantized_tensor import Points, QuantizedTensor
from bsq_lightning.run_folder import RunFolder
from bsq_lightning.scheme import FLOAT_BITS

FILE = "layers.json"


@dataclass(frozen=True)
class LayerErrors:
    """One layer before and after.

    Args:
        layer: its name.
        weights: their number.
        bits_before: of a weight, as stored with its sign; 32 for float.
        bits: of a weight now, as stored with its sign; steps and the like come beside.
        weight_error: ``||W - W_hat||^2 / ||W||^2``.
        output_error: ``E ||(W - W_hat) x||^2 / E ||W x||^2`` over the calibration images, of all channels together.
        points: points of a channel on average; 1 for all methods but multipoint.
        size: memory over that of a plain quantizer of these bits with a step for each channel; None where it is one.
        operations: the same of operations.
    """

    layer: str
    weights: int
    bits_before: float
    bits: float
    weight_error: float
    output_error: float
    points: float = 1.0
    size: float | None = None
    operations: float | None = None


def errors_of(
    name: str, weight: Tensor, tensor: QuantizedTensor, inputs: Tensor, before: QuantizedTensor | None
) -> LayerErrors:
    """Measures one layer.

    Args:
        name: of the layer.
        weight: W before, ``[K, ...]``.
        tensor: what it is now.
        inputs: what its channels multiply, ``[groups, T, d]``.
        before: what W was made of, if it was quantized already.
    """
    rows, now = weight.flatten(1), tensor.dequantize().to(weight.dtype).flatten(1)
    energy, outputs = float(rows.double().square().sum()), float(output_errors(rows, inputs).sum())
    points = isinstance(tensor.extra, Points) or tensor.sign == "inside"
    size, operations = factors(tensor) if points else (None, None)
    return LayerErrors(
        name,
        weight.numel(),
        before.storage_bits() / weight.numel() if before is not None else float(FLOAT_BITS),
        tensor.storage_bits() / weight.numel(),
        float((rows - now).double().square().sum()) / energy if energy else 0.0,
        float(output_errors(rows - now, inputs).sum()) / outputs if outputs else 0.0,
        float(points_of(tensor).double().mean()) if tensor.codes.dim() else 1.0,
        size,
        operations,
    )


def write_layers(folder: RunFolder, layers: Sequence[LayerErrors], agreement: float) -> None:
    """Keeps the layers, and the share of test images that get the class they got before."""
    content = {"top1_agreement": agreement, "layers": [asdict(layer) for layer in layers]}
    write_whole(folder.path / FILE, json.dumps(content, indent=1))


def print_layers(folder: RunFolder) -> None:
    """The layers before and after, and in all."""
    content = read_json(folder.path / FILE)
    layers = [LayerErrors(**row) for row in content["layers"]]
    several = any(layer.operations is not None for layer in layers)
    console = Console(width=None if Console().is_terminal else 120)
    table = Table(title="layers before and after", title_justify="left")
    for column in ("layer", "weights", "bits before", "bits", "error of weights", "of outputs"):
        table.add_column(column, justify="left" if column == "layer" else "right")
    for column in ("points", "size", "operations") if several else ():
        table.add_column(column, justify="right")
    for layer in layers:
        more = [f"{layer.points:.2f}", _times(layer.size), _times(layer.operations)] if several else []
        table.add_row(
            layer.layer, f"{layer.weights:,}", f"{layer.bits_before:.2f}", f"{layer.bits:.2f}",
            f"{layer.weight_error:.2e}", f"{layer.output_error:.2e}", *more,
        )  # fmt: skip
    console.print(table)
    total = sum(layer.weights for layer in layers)
    mean = sum(layer.weights * layer.bits for layer in layers) / total
    error = sum(layer.output_error for layer in layers) / len(layers)
    console.print(
        f"{mean:.3f} bits a weight with signs; error of outputs {error:.3g}, mean over layers; "
        f"{100 * content['top1_agreement']:.2f} % of test images keep their class"
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} x"
