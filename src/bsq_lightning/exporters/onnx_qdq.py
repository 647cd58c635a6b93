"""ONNX: integer initializers behind DequantizeLinear, activations through QuantizeLinear and DequantizeLinear."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from bsq_lightning.exporters.folding import fold_batch_norm
from bsq_lightning.exporters.forms import code_bits, plain_forms
from bsq_lightning.exporters.onnx_graph import NARROW, narrow_, strip_, verify_graph
from bsq_lightning.exporters.pair import (
    Exported,
    Rounding,
    check_ranges,
    check_target,
    hook_activations_,
    plain_copy,
    state_key,
    write_export,
)
from bsq_lightning.exporters.tracing import first_line, stops_in
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState, QuantizedTensor

NON_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid)
OLDEST = 18  # torch exports from here


def export_onnx(
    path: str | Path,
    net: nn.Module,
    state: QuantizedState,
    inputs: Tensor,
    *,
    opset: int | None = None,
    fold: bool = False,
    narrowest: int = 2,
    activations: float = 1e-5,
    logits: float = 1e-4,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes an ONNX graph of any batch size, checked by ``onnx.checker`` and against the float simulation.

    A weight is an initializer of the smallest integer type that holds its codes: int2 for 1 bit and a sign, int4 for
    2 and 3, int8 for 4 to 7, int16 for 8 to 15, 32-bit float above and for what is not codes times steps. A layer of
    0 bits is a constant. With basic optimisations onnxruntime must round every activation as the simulation does.

    Args:
        path: the file.
        net: plain network.
        state: its quantized tensors and activations, ranges fixed.
        inputs: float32, ``[N, ...]``, N at least 2, to compare on.
        opset: operator set; the smallest that holds every type if None.
        fold: put batch norms into the layers before them, which gives each channel a step.
        narrowest: bits of the smallest integer type to use; 4 for runtimes without int2.
        activations: how far beyond a tie a code may have been rounded otherwise, as a share of the site's range.
        logits: allowed difference of the logits once codes are the same, as a share of the largest.
        card: plain data that goes into the file.
        overwrite: replace a file that exists.

    Returns:
        The file; ``report`` has the agreement with basic, and top-1 with all optimisations.

    Raises:
        ModuleNotFoundError: onnx, onnxruntime or onnxscript is missing.
        FileExistsError: the file exists.
        ValueError: ranges that are not fixed, an operator set too old, a layer that cannot be exported, or a
            difference beyond the tolerance; nothing is written then.
    """
    check_onnx()
    check_target(path, overwrite)
    check_ranges(state, "ONNX")
    if fold:
        net, state = fold_batch_norm(net, state)
    forms, notes = plain_forms(state)
    held: dict[str, tuple[QuantizedTensor, int]] = {}
    needed: dict[str, int] = {}
    for name, form in forms.items():
        bits = 0 if form is None else code_bits(form)
        type_bits = next((each for each in NARROW if each >= max(bits, narrowest)), None)
        if form is None:
            continue
        form.check(name)
        if bits and type_bits is None:
            notes.append(f"{name}: codes of {bits} bits, stored as 32-bit float")
            continue
        held[name] = form, type_bits if bits and type_bits else 0
        if bits and type_bits:
            needed[name] = NARROW[type_bits].opset
            if bits != type_bits:
                notes.append(f"{name}: codes of {bits} bits, stored as int{type_bits}")
    plain = plain_copy(net, state)
    dtypes = {site.site: _activation_dtype(plain, site) for site in state.activations}
    needed |= {name: 21 for name, dtype in dtypes.items() if dtype.itemsize > 1}
    graph = _Graph(plain, state, held, dtypes)
    model = _trace(graph, inputs[:2], _operator_set(opset, needed))
    sites = strip_(model)
    narrow_(model, {f"codes_{place}": (f"{name}.codes", bits) for place, (name, (_, bits)) in enumerate(held.items())})
    report = verify_graph(model, net, state, inputs, sites, activations, logits)
    for key, value in {"card": dict(card or {}), "notes": notes, "report": report}.items():
        model.metadata_props.add(key=f"bsq_lightning.{key}", value=json.dumps(value))
    content = model.SerializeToString()
    return Exported(write_export(path, content, overwrite), len(content), tuple(notes), report)


def check_onnx() -> None:
    """Raises ModuleNotFoundError, with the remedy, where a package for ONNX is missing."""
    if missing := [name for name in ("onnx", "onnxruntime", "onnxscript") if find_spec(name) is None]:
        raise ModuleNotFoundError(f"ONNX needs {', '.join(missing)}: pip install 'bsq_lightning[export]'")


class _Graph(nn.Module):
    """The network with its quantized weights made by DequantizeLinear, for the tracer only."""

    def __init__(
        self,
        net: nn.Module,
        state: QuantizedState,
        held: Mapping[str, tuple[QuantizedTensor, int]],
        dtypes: Mapping[str, torch.dtype],
    ) -> None:
        super().__init__()
        self.net = hook_activations_(net, state.activations, lambda site: _Symbolic(site, dtypes[site.site]))
        self.names = list(held)
        for place, (form, bits) in enumerate(held.values()):
            if bits:
                self.register_buffer(f"codes_{place}", form.codes.cpu().to(torch.int8 if bits <= 8 else torch.int16))
                self.register_buffer(
                    f"step_{place}", form.step.cpu().float().flatten() if form.step.dim() else form.step
                )
        self.shapes = [tuple(form.codes.shape) for form, _ in held.values()]

    def forward(self, x: Tensor) -> Tensor:
        weights = {}
        for place, (name, shape) in enumerate(zip(self.names, self.shapes, strict=True)):
            codes = getattr(self, f"codes_{place}", None)
            if codes is None:  # 0 bits
                weights[state_key(name)] = torch.zeros(shape)
                continue
            step = getattr(self, f"step_{place}")
            weights[state_key(name)] = torch.onnx.ops.symbolic(
                "DequantizeLinear", (codes, step), {"axis": 0} if step.dim() else {}, dtype=torch.float32, shape=shape
            )
        return functional_call(self.net, weights, (x,))


class _Symbolic(Rounding):
    """The same rounding as a pair of ONNX nodes."""

    def __init__(self, activation: QuantizedActivation, dtype: torch.dtype) -> None:
        super().__init__(activation)
        self.dtype = dtype
        self.step = torch.tensor(activation.range) / self.levels

    def __call__(self, x: Tensor) -> Tensor:
        clip, size = self.activation.clip, self.activation.range
        top = size if clip is None else min(clip, size)
        x = x.clamp(-top, top)
        step, zero = self.step.clone(), torch.zeros((), dtype=self.dtype)
        codes = torch.onnx.ops.symbolic(
            "QuantizeLinear", (x, step, zero), dtype=self.dtype, shape=x.shape,
            metadata_props={"site": self.activation.site},
        )  # fmt: skip
        return torch.onnx.ops.symbolic("DequantizeLinear", (codes, step, zero), dtype=torch.float32, shape=x.shape)


def _activation_dtype(net: nn.Module, site: QuantizedActivation) -> torch.dtype:
    """The smallest of 8 and 16 bits; signed where the activations may be negative."""
    positive = site.at == "output" and isinstance(net.get_submodule(site.site), NON_NEGATIVE)
    types = (torch.uint8, torch.uint16) if positive else (torch.int8, torch.int16)
    for dtype in types:
        if 2**site.bits - 1 <= torch.iinfo(dtype).max:
            return dtype
    raise ValueError(f"{site.site}: activations of {site.bits} bits and a sign are more than ONNX's 16 bits hold")


def _operator_set(asked: int | None, needed: Mapping[str, int]) -> int:
    least = max([OLDEST, *needed.values()])
    if asked is not None and asked < least:
        late = [f"{name} ({opset})" for name, opset in needed.items() if opset > asked]
        why = ", ".join(late[:5]) + (", ..." if len(late) > 5 else "") or f"torch's exporter ({OLDEST})"
        raise ValueError(f"operator set {asked} is too old for {why}: give opset={least}, or leave it out")
    return asked or least


def _trace(graph: "_Graph", inputs: Tensor, opset: int) -> Any:
    try:
        program = torch.onnx.export(
            graph.eval(), (inputs,), dynamo=True, optimize=False, opset_version=opset, external_data=False,
            dynamic_shapes=({0: torch.export.Dim("batch")},), input_names=["input"], output_names=["logits"],
            verbose=False,
        )  # fmt: skip
    except Exception as error:  # what the tracer meets in a foreign forward may raise anything
        raise ValueError(
            f"the network cannot be exported to ONNX for any batch size{stops_in(graph.net, inputs)}: "
            f"{first_line(error.__cause__ or error)}"
        ) from error
    assert program is not None
    return program.model_proto
