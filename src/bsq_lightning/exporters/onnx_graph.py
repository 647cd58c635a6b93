"""ONNX graphs as data: narrow initializers, what onnxruntime computes of them, and whether that is the network."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bsq_lightning.exporters.agreement import compare, top1_agreement
from bsq_lightning.exporters.pair import simulated
from bsq_lightning.quantized_tensor import QuantizedState


class IntegerType(NamedTuple):
    """A signed integer type of ONNX, the operator set that dequantizes it first, and the file format that knows it."""

    name: str
    opset: int
    format: int


NARROW = {
    2: IntegerType("INT2", 25, 13), 4: IntegerType("INT4", 21, 10),
    8: IntegerType("INT8", 13, 7), 16: IntegerType("INT16", 21, 10),
}  # fmt: skip


def strip_(model: Any) -> dict[str, str]:
    """Takes what the tracer noted about itself out of a model; returns by activation site the name of its codes."""
    sites: dict[str, str] = {}
    for node in model.graph.node:
        for prop in node.metadata_props:
            if prop.key == "site":
                sites[node.output[0]] = prop.value
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for part in (*model.graph.input, *model.graph.output, *model.graph.initializer, model.graph, model):
        del part.metadata_props[:]
    del model.graph.value_info[:]
    return sites


def narrow_(model: Any, types: Mapping[str, tuple[str, int]]) -> None:
    """Puts initializers of whole bytes into types of fewer bits.

    Args:
        model: ModelProto.
        types: by name of an initializer its new name and its bits, one of ``NARROW``; 0 leaves it out.
    """
    from onnx import TensorProto, helper, numpy_helper

    names = {old: new for old, (new, bits) in types.items() if bits}
    formats = [model.ir_version]
    for initializer in model.graph.initializer:
        new, bits = types.get(initializer.name, ("", 0))
        if bits:
            codes = torch.from_numpy(numpy_helper.to_array(initializer).copy()).flatten()
            kind = NARROW[bits]
            raw = _packed(codes, bits) if bits < 8 else codes.numpy().tobytes()
            made = helper.make_tensor(new, getattr(TensorProto, kind.name), list(initializer.dims), raw, raw=True)
            initializer.CopyFrom(made)
            formats.append(kind.format)
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    model.ir_version = max(formats)


def open_session(content: bytes, optimized: bool) -> Any:
    """An onnxruntime session on the CPU, with all optimisations or the basic ones, and as many threads as torch has."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    level = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_ENABLE_BASIC
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def run_graph(
    model: Any, inputs: Tensor, outputs: list[str] | None = None, *, optimized: bool = False, batch: int = 100
) -> list[Tensor]:
    """What onnxruntime computes of a model on the CPU.

    Args:
        model: ModelProto, or its bytes.
        inputs: ``[N, ...]``.
        outputs: names; all outputs of the model if None.
        optimized: all optimisations, which fuse integer kernels that round ties otherwise; else the basic ones.
        batch: inputs at a time.

    Returns:
        One tensor for each output, over all inputs.

    Raises:
        ValueError: onnxruntime does not run the model; the message has its reason.
    """
    content = model if isinstance(model, bytes) else model.SerializeToString()
    try:
        session = open_session(content, optimized)
        name = session.get_inputs()[0].name
        found = [session.run(outputs, {name: part.cpu().numpy()}) for part in inputs.split(batch)]
    except Exception as error:  # its errors share no base class
        raise ValueError(f"onnxruntime does not run the graph: {str(error).strip().splitlines()[0]}") from error
    return [torch.cat([torch.from_numpy(part) for part in parts]) for parts in zip(*found, strict=True)]


def check_graph(model: Any) -> None:
    """Raises ValueError where onnx's checker finds a fault, and for operators or data outside the file."""
    import onnx

    foreign = {node.domain for node in model.graph.node if node.domain not in ("", "ai.onnx")}
    if foreign or any(tensor.external_data for tensor in model.graph.initializer):
        raise ValueError(f"the graph needs what is not in the file: {', '.join(sorted(foreign)) or 'external data'}")
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"onnx's checker refuses the graph: {str(error).strip().splitlines()[0]}") from error


def verify_graph(
    model: Any, net: nn.Module, state: QuantizedState, inputs: Tensor, sites: Mapping[str, str], activations: float,
    logits: float,
) -> dict[str, Any]:  # fmt: skip
    """Compares a model with the float simulation, site by site.

    Args:
        model: ModelProto; its input and output are images and logits.
        net: plain network.
        state: its quantized tensors and activations.
        inputs: ``[N, ...]``.
        sites: by name of a value of the graph the site whose codes it holds.
        activations: tolerance, see ``Agreement.check``.
        logits: tolerance.

    Returns:
        Numbers for the card.

    Raises:
        ValueError: a difference beyond a tolerance, or a graph that is refused.
    """
    check_graph(model)
    probe = type(model)()
    probe.CopyFrom(model)
    for value in sites:
        probe.graph.output.add(name=value)  # its type is inferred
    first, *codes = run_graph(probe, inputs)
    found: dict[str, list[Tensor]] = {}
    for site, value in zip(sites.values(), codes, strict=True):
        found.setdefault(site, []).append(value)
    agreement = compare(net, state, inputs, found, first)
    agreement.check("onnxruntime", activations, logits)
    report: dict[str, Any] = {"opset": model.opset_import[0].version, **agreement.as_dict()}
    try:
        all_of_them = run_graph(model, inputs, optimized=True)[0]
        with torch.no_grad():
            report["top1_optimized"] = top1_agreement(all_of_them, simulated(net, state)(inputs))
    except ValueError as error:
        report["optimized"] = str(error)
    return report


def _packed(codes: Tensor, bits: int) -> bytes:
    """ONNX packs within each byte, the first code in the lowest bits."""
    lanes = 8 // bits
    codes = torch.nn.functional.pad(codes, (0, -len(codes) % lanes)).view(-1, lanes) & ((1 << bits) - 1)
    return (codes.to(torch.int32) << torch.arange(0, 8, bits)).sum(1).to(torch.uint8).numpy().tobytes()
