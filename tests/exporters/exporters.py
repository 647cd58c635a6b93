"""The list that drives the laws of exporters: a new format is one row here."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bsq_lightning.exporters import export_hub, export_onnx, export_packed, export_torch, load, read_packed
from bsq_lightning.exporters.kinds import read_model
from bsq_lightning.exporters.onnx_graph import run_graph

NEEDS_HUB = pytest.mark.skipif(
    find_spec("huggingface_hub") is None, reason="huggingface_hub is not installed: its folder is not tested"
)
NEEDS_ONNX = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime", "onnxscript")),
    reason="onnx, onnxruntime or onnxscript is not installed: ONNX is not tested",
)


@dataclass(frozen=True)
class Format:
    """An exporter, its way back, and how near the logits come."""

    export: Callable
    run: Callable[[Path, nn.Module, Tensor], Tensor]
    read_card: Callable[[Path], dict]
    tolerance: float


def _run_packed(path: Path, net: nn.Module, x: Tensor) -> Tensor:
    for parameter in net.parameters():
        nn.init.normal_(parameter)  # nothing may be left of what was there
    return load(path, net)(x)


def _onnx_card(path: Path) -> dict:
    import json

    return json.loads({prop.key: prop.value for prop in read_model(path).metadata_props}["bsq_lightning.card"])


def _program_card(path: Path) -> dict:
    import json

    extra = {"card.json": ""}
    torch.export.load(path, extra_files=extra)
    return json.loads(extra["card.json"])


def _run_onnx(path: Path, net: nn.Module, x: Tensor) -> Tensor:
    return run_graph(path.read_bytes(), x)[0]


FORMATS = {
    "packed": Format(export_packed, _run_packed, lambda path: read_packed(path).card, 0.0),
    "hub": Format(export_hub, _run_packed, lambda path: read_packed(path).card, 0.0),
    "onnx": Format(export_onnx, _run_onnx, _onnx_card, 1e-5),
    "onnx_folded": Format(partial(export_onnx, fold=True), _run_onnx, _onnx_card, 1e-5),
    "torch_export": Format(export_torch, lambda path, net, x: torch.export.load(path).module()(x), _program_card, 1e-6),
}
MARKS = {"onnx": NEEDS_ONNX, "onnx_folded": NEEDS_ONNX, "hub": NEEDS_HUB}
ALL = [pytest.param(name, marks=MARKS.get(name, ())) for name in FORMATS]
