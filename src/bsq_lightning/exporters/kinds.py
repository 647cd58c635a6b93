"""What a file is, decided by its bytes, and whether it is whole; nothing in it is executed."""

import json
import re
import zipfile
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bsq_lightning.exporters.onnx_graph import check_graph
from bsq_lightning.exporters.packed_file import FORMAT, read_packed

KINDS = ("packed", "onnx", "torch_export")
# Weights as plain bytes, the graph as JSON, and the notes of torch's archive; no pickled tensor, no compiled code.
PROGRAM = re.compile(
    r"data/(weights|constants)/(weight_\d+|tensor_\d+|model_(weights|constants)_config\.json)|"
    r"data/sample_inputs/model\.pt|models/model\.json|extra/card\.json|archive_format|archive_version|byteorder|"
    r"\.data/(version|serialization_id)"
)


def kind_of(path: str | Path) -> str:
    """``packed``, ``onnx`` or ``torch_export``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is none of them; the message calls it foreign.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}")
    with open(path, "rb") as file:
        start = file.read(9)
    if start.startswith(b"PK\x03\x04"):
        return "torch_export"
    if start[8:9] == b"{":
        return "packed"
    if start[:1] == b"\x08":  # the first field of a ModelProto, its format
        return "onnx"
    raise ValueError(f"{path} is foreign: neither a packed network nor ONNX nor a torch.export program")


def check_whole(path: str | Path, kind: str) -> str:
    """Reads all of a file without running any of it; returns in words what was looked at.

    Raises:
        ValueError: it is cut, altered or foreign; the message says which, as far as the file itself tells.
        ModuleNotFoundError: onnx is needed to read it and missing.
    """
    path = Path(path)
    if kind == "packed":
        return _check_packed(path)
    return _check_onnx(path) if kind == "onnx" else _check_program(path)


def read_model(path: str | Path) -> Any:
    """The ModelProto in a file.

    Raises:
        ValueError: the file is not whole.
    """
    import onnx
    from google.protobuf.message import DecodeError

    model = onnx.ModelProto()
    try:
        model.ParseFromString(Path(path).read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} is cut or altered: it is not a whole ONNX file") from error
    return model


def program_files(path: str | Path) -> dict[str, int]:
    """Bytes of the parts of a torch.export archive, by name without its folder.

    Raises:
        ValueError: the archive is cut or altered.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return {info.filename.partition("/")[2]: info.file_size for info in archive.infolist()}
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise ValueError(f"{path} is cut or altered: {error}") from error


def _check_packed(path: Path) -> str:
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("format")
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is cut or altered: {error}") from error
    if found != FORMAT:
        raise ValueError(f"{path} is foreign: a safetensors file of format {found!r}, not {FORMAT!r}")
    packed = read_packed(path)
    return f"{len(packed.state.tensors)} quantized and {len(packed.rest)} float tensors, its own checksum agrees"


def _check_onnx(path: Path) -> str:
    model = read_model(path)
    if not model.graph.node:
        raise ValueError(f"{path} is foreign: an ONNX file without a graph")
    check_graph(model)
    return f"{len(model.graph.node)} nodes, operator set {model.opset_import[0].version}, onnx's checker accepts it"


def _check_program(path: Path) -> str:
    names = program_files(path)
    if "models/model.json" not in names:
        raise ValueError(f"{path} is foreign: a zip archive without a torch.export program")
    if unknown := [name for name in names if not PROGRAM.fullmatch(name)]:
        raise ValueError(f"{path} is foreign: it holds {', '.join(unknown[:3])}, which the export does not write")
    try:
        with zipfile.ZipFile(path) as archive:
            infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
            if any(info.compress_type != zipfile.ZIP_STORED for info in infos.values()):
                raise ValueError(f"{path} is foreign: torch does not compress its archives")
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"{path} is altered: the checksum of {broken} does not agree")
            for part in ("weights", "constants"):
                text = archive.read(infos[f"data/{part}/model_{part}_config.json"])
                config = json.loads(text)["config"]
                if any(entry["use_pickle"] is not False for entry in config.values()):
                    raise ValueError(f"{path} is foreign: it holds pickled objects, which would run code when loaded")
    except (zipfile.BadZipFile, KeyError, TypeError, AttributeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is cut or altered ({type(error).__name__}: {error})") from error
    return f"{len(names)} parts whole, none of them pickled weights"
