"""ONNX: the smallest types, the operator sets they need, tolerances that refuse, and what has no place in a graph."""

from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from bsq_lightning.exporters import export_onnx, export_torch, latencies, onnx_graph, verify
from bsq_lightning.exporters.kinds import read_model
from bsq_lightning.exporters.onnx_graph import check_graph, run_graph
from bsq_lightning.quantized_tensor import Points, QuantizedActivation, QuantizedState
from tests.exporters.exporters import NEEDS_ONNX
from tests.exporters.pairs import deep, tiny

pytestmark = NEEDS_ONNX
TYPE_OF = {
    1: "INT2",
    2: "INT4",
    3: "INT4",
    **dict.fromkeys(range(4, 8), "INT8"),
    **dict.fromkeys(range(8, 16), "INT16"),
}


def types(path: Path) -> dict[str, str]:
    import onnx

    names = onnx.TensorProto.DataType.Name
    found = {each.name: names(each.data_type) for each in read_model(path).graph.initializer}
    return {name.removesuffix(".codes"): word for name, word in found.items() if name.endswith(".codes")}


FEW = (0, 1, 3, 7, 15, 16)  # each of these is a trace of seconds


@pytest.mark.parametrize("bits", [pytest.param(n, marks=() if n in FEW else pytest.mark.slow) for n in range(17)])
def test_the_smallest_type_that_holds_sign_and_magnitude(bits: int, tmp_path: Path) -> None:
    net, state, x = tiny(bits)
    exported = export_onnx(tmp_path / "net.onnx", net, state, x)
    assert types(exported.path) == ({name: TYPE_OF[bits] for name in state.tensors} if bits in TYPE_OF else {})
    if bits == 16:
        assert "conv1: codes of 17 bits, stored as 32-bit float" in exported.notes
    assert exported.report["opset"] == (25 if bits == 1 else 21 if bits in TYPE_OF and TYPE_OF[bits] != "INT8" else 18)
    assert exported.report["codes_that_differ"] == 0


def test_an_operator_set_too_old_is_refused_by_layer(tmp_path: Path) -> None:
    net, state, x = tiny(1)
    with pytest.raises(ValueError, match=r"operator set 21 is too old for conv1 \(25\), .*: give opset=25"):
        export_onnx(tmp_path / "net.onnx", net, state, x, opset=21)
    wider = export_onnx(tmp_path / "net.onnx", net, state, x, opset=21, narrowest=4)
    assert set(types(wider.path).values()) == {"INT4"}
    assert "conv1: codes of 2 bits, stored as int4" in wider.notes
    with pytest.raises(ValueError, match=r"onnxruntime does not run the graph|operator set"):
        export_onnx(tmp_path / "other.onnx", net, state, x, opset=28)
    assert not (tmp_path / "other.onnx").exists()


@pytest.mark.slow
def test_batch_norm_disappears_when_folded(tmp_path: Path) -> None:
    net, state, x = deep()
    plain = export_onnx(tmp_path / "plain.onnx", net, state, x)
    folded = export_onnx(tmp_path / "folded.onnx", net, state, x, fold=True)
    operators = [{node.op_type for node in read_model(each.path).graph.node} for each in (plain, folded)]
    assert "BatchNormalization" in operators[0] and "BatchNormalization" not in operators[1]
    assert folded.size < plain.size
    assert plain.report["top1_optimized"] == folded.report["top1_optimized"] == 1


@pytest.mark.parametrize("bits", [7, 8])
def test_activations_take_8_or_16_bits_with_a_sign_where_they_need_one(bits: int, tmp_path: Path) -> None:
    net, state, x = tiny(4, bits)
    sites = (state.activations[0], QuantizedActivation("fc", "input", bits, None, 1.0))
    path = export_onnx(tmp_path / "net.onnx", net, replace(state, activations=sites), x).path
    import onnx

    model = onnx.shape_inference.infer_shapes(read_model(path))
    outputs = {node.output[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}
    names = onnx.TensorProto.DataType.Name
    found = [names(v.type.tensor_type.elem_type) for v in model.graph.value_info if v.name in outputs]
    assert found == (["UINT8", "INT8"] if bits < 8 else ["UINT8" if bits == 8 else "UINT16", "INT16"])


def test_what_a_graph_cannot_hold_is_refused_by_name(tmp_path: Path) -> None:
    net, state, x = tiny()
    free = replace(state, activations=(replace(state.activations[0], range=0.0),))
    with pytest.raises(ValueError, match="ONNX needs a fixed range .* and relu take each batch's own: calibrate"):
        export_onnx(tmp_path / "net.onnx", net, free, x)
    wide = replace(state, activations=(QuantizedActivation("fc", "input", 16, None, 1.0),))
    with pytest.raises(ValueError, match="fc: activations of 16 bits and a sign"):
        export_onnx(tmp_path / "net.onnx", net, wide, x)

    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    net = nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 2, 1), odd=Branch()))
    for export, what in ((export_onnx, "to ONNX "), (export_torch, "")):
        with pytest.raises(ValueError, match=rf"cannot be exported {what}for any batch size because of odd \(Branch\)"):
            export(tmp_path / "net", net, QuantizedState({}), x)
    assert not list(tmp_path.iterdir())


def test_points_become_floats_and_say_so(tmp_path: Path) -> None:
    net, state, x = tiny()
    fc = state.tensors["fc"]
    fc = replace(fc, extra=Points(fc.codes[None], torch.full((1, 5, 1), 0.01)))
    with torch.no_grad():
        net.get_parameter("fc.weight").copy_(fc.dequantize())
    exported = export_onnx(tmp_path / "net.onnx", net, replace(state, tensors={**state.tensors, "fc": fc}), x)
    assert "fc: 2 points, stored as their sum in 32-bit float" in exported.notes
    assert set(types(exported.path)) == {"conv1", "conv2"}


def test_the_export_fails_beyond_its_tolerance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, state, x = tiny()
    right = onnx_graph.run_graph

    def wrong(*args: object, **kwargs: object) -> list[torch.Tensor]:
        logits, first, *codes = right(*args, **kwargs)  # type: ignore[arg-type]
        return [logits, first + (torch.arange(first.numel()).view(first.shape) == 5), *codes]

    monkeypatch.setattr(onnx_graph, "run_graph", wrong)
    with pytest.raises(ValueError, match="onnxruntime does not compute the quantized network: at relu 1 of 1024 codes"):
        export_onnx(tmp_path / "net.onnx", net, state, x)
    assert not list(tmp_path.iterdir())


def test_graphs_that_reach_outside_are_refused(tmp_path: Path) -> None:
    net, state, x = tiny()
    path = export_onnx(tmp_path / "net.onnx", net, state, x).path
    model = read_model(path)
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    with pytest.raises(ValueError, match="needs what is not in the file: external data"):
        check_graph(model)
    model = read_model(path)
    model.graph.node[0].domain = "com.stranger"
    path.write_bytes(model.SerializeToString())
    assert not verify(path).passed
    with pytest.raises(ValueError, match="onnxruntime does not run the graph"):
        run_graph(b"\x08\x0a", x)


def test_latency_is_of_the_floats_and_of_the_codes(tmp_path: Path) -> None:
    net, state, x = tiny()
    path = export_onnx(tmp_path / "net.onnx", net, state, x).path
    found = latencies(path, net, state, x, rounds=2)
    assert [each.side.split(",")[0] for each in found] == ["float", "float", "quantized", "quantized"]
    assert all(0 < each.low <= each.median <= each.high for each in found)
    with pytest.raises(ValueError, match="2 rounds at least, not 1"):
        latencies(path, net, state, x, rounds=1)
