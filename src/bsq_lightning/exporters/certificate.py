"""A certificate beside an export, and ``verify``, which repeats it: checksum, size, logits on stored inputs."""

import copy
import hashlib
import io
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from bsq_lightning.exporters.agreement import top1_agreement
from bsq_lightning.exporters.kinds import check_whole, kind_of, read_model
from bsq_lightning.exporters.ledger import LedgerRow
from bsq_lightning.exporters.onnx_graph import run_graph
from bsq_lightning.exporters.packed import load
from bsq_lightning.exporters.packed_file import checksum, read_packed
from bsq_lightning.exporters.pair import simulated, write_export
from bsq_lightning.ops.tensor_file import tensor_file
from bsq_lightning.quantized_tensor import QuantizedState

FORMAT = "bsq_lightning.certificate.1"


@dataclass(frozen=True)
class Check:
    """One thing that was looked at.

    Args:
        name: ``form``, ``checksum``, ``size`` or ``logits``.
        passed: None where it could not be looked at.
        found: in words.
    """

    name: str
    passed: bool | None
    found: str


@dataclass(frozen=True)
class Verification:
    """All checks of one file."""

    path: Path
    kind: str
    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing failed; what could not be looked at does not count."""
        return all(check.passed is not False for check in self.checks)

    def lines(self) -> list[str]:
        """One line for each check, for a terminal."""
        words = {True: "passed", False: "FAILED", None: "not checked"}
        return [f"{check.name}: {words[check.passed]}: {check.found}" for check in self.checks]


def certificate_path(path: str | Path) -> Path:
    """Where the certificate of a file lies: beside it, with ``.certificate`` behind its name."""
    return Path(f"{path}.certificate")


def certify(
    path: str | Path,
    net: nn.Module,
    state: QuantizedState,
    inputs: Tensor,
    *,
    report: Mapping[str, Any] | None = None,
    ledger: Sequence[LedgerRow] = (),
    overwrite: bool = False,
) -> Path:
    """Runs an exported file on ``inputs`` and writes beside it what came out, with checksum and sizes.

    Args:
        path: the exported file, one's own: a torch.export program is run.
        net: the plain network that was exported.
        state: its quantized tensors and activations.
        inputs: ``[N, ...]``; they are stored, so a few are enough.
        report: what the exporter reported.
        ledger: sizes to keep with it.
        overwrite: replace a certificate that exists.

    Returns:
        Path of the certificate.
    """
    path = Path(path)
    kind = kind_of(path)
    logits = _run(path, kind, inputs, net, trusted=True)
    with torch.no_grad():
        expected = simulated(net, state)(inputs)
    content = path.read_bytes()
    facts = {
        "file": path.name,
        "kind": kind,
        "bytes": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "model_bits": state.scheme().bits("model") if state.tensors else None,
        "difference_to_network": _difference(logits, expected),
        "top1_to_network": top1_agreement(logits, expected),
        "report": dict(report or {}),
        "ledger": [asdict(row) for row in ledger],
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
    }
    arrays = {"inputs": inputs.detach().cpu().contiguous(), "logits": logits.detach().cpu().contiguous()}
    text = json.dumps(facts)
    metadata = {"format": FORMAT, "facts": text, "sha256": checksum(text, arrays)}
    return write_export(certificate_path(path), tensor_file(arrays, metadata), overwrite)


def read_certificate(path: str | Path) -> tuple[dict[str, Any], Tensor, Tensor]:
    """Facts, inputs and logits of the certificate of the file at ``path``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is cut, altered or something else.
    """
    place = certificate_path(path)
    if not place.is_file():
        raise FileNotFoundError(f"there is no certificate at {place}")
    try:
        with safe_open(place, framework="pt") as file:
            metadata = file.metadata() or {}
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if metadata.get("format") != FORMAT or checksum(metadata["facts"], arrays) != metadata["sha256"]:
            raise ValueError("its content is not what its checksum says")
        facts = json.loads(metadata["facts"])
        return dict(facts), arrays["inputs"], arrays["logits"]
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{place} is not a whole certificate ({type(error).__name__}: {error})") from error


def certified_beside(path: str | Path, state: QuantizedState) -> list[Path]:
    """The other exported files in the folder of ``path``, of a network of the same size and as they were certified; one
    that was changed since is for ``verify`` to name."""
    bits, found = state.scheme().bits("model"), []
    for place in sorted(Path(path).parent.glob("*.certificate")):
        other = place.with_suffix("")
        if other == Path(path) or not other.is_file():
            continue
        try:
            facts = read_certificate(other)[0]
        except ValueError:
            continue
        if facts["model_bits"] == bits and facts["sha256"] == hashlib.sha256(other.read_bytes()).hexdigest():
            found.append(other)
    return found


def verify(
    path: str | Path, net: nn.Module | None = None, *, trusted: bool = False, tolerance: float = 1e-4
) -> Verification:
    """Looks at an exported file as a stranger's: is it whole, is it the certified one, does it still compute the same?

    Args:
        path: a packed, ONNX or torch.export file.
        net: the architecture of a packed file, any weights; a copy is not made. Without it its logits are not checked.
        trusted: run a torch.export program; torch evaluates expressions out of such a file when it loads it.
        tolerance: allowed difference of the logits as a share of the largest.

    Returns:
        Every check with what it found. A file that is cut, altered or foreign fails ``form`` or ``checksum``.

    Raises:
        FileNotFoundError: no such file.
    """
    path = Path(path)
    try:
        kind = kind_of(path)
    except ValueError as error:
        return Verification(path, "foreign", (Check("form", False, str(error)),))
    checks: list[Check] = []
    try:
        facts, inputs, logits = read_certificate(path)
    except (FileNotFoundError, ValueError) as error:
        facts, inputs, logits = {}, torch.empty(0), torch.empty(0)
        checks.append(Check("checksum", None if isinstance(error, FileNotFoundError) else False, str(error)))
    else:
        checks.append(_check_bytes(path, facts))
    try:
        checks.append(Check("form", True, check_whole(path, kind)))
    except (ValueError, ModuleNotFoundError) as error:
        failed = None if isinstance(error, ModuleNotFoundError) else False
        return Verification(path, kind, (*checks, Check("form", failed, str(error))))
    checks.append(_check_size(path, kind))
    if not facts:
        checks.append(Check("logits", None, "without a certificate there are no inputs to run"))
    elif checks[0].passed:
        checks.append(_check_logits(path, kind, inputs, logits, net, trusted, tolerance))
    return Verification(path, kind, tuple(checks))


def _check_bytes(path: Path, facts: Mapping[str, Any]) -> Check:
    content = path.read_bytes()
    if len(content) < facts["bytes"]:
        return Check("checksum", False, f"{path} is cut: {len(content)} of {facts['bytes']} bytes")
    if hashlib.sha256(content).hexdigest() != facts["sha256"]:
        return Check("checksum", False, f"{path} is altered: it is not the file that was certified")
    return Check("checksum", True, f"sha256 {facts['sha256'][:16]}... as certified")


def _check_size(path: Path, kind: str) -> Check:
    if kind != "packed":
        return Check("size", None, f"{path.stat().st_size} bytes; only a packed file claims the size of its scheme")
    packed = read_packed(path)
    state, parts = packed.state, packed.parts
    claimed = state.scheme().bits("model") / 8 if state.tensors else parts["float_parameters"]
    holds = parts["codes"] + parts["steps"] + parts["float_parameters"]
    # Weights that only floats hold (points, codebooks elsewhere) are named in the notes and no part of the scheme.
    grown = max(0, parts["float_parameters"] - 4 * state.float_parameters) if packed.notes else 0
    text = (
        f"{holds} bytes of model, the scheme claims {claimed:.0f}; "
        f"{parts['buffers']} of running statistics, {parts['card']} of card and {parts['header']} of header beside"
    )
    text += f"; {grown} bytes larger than that: {'; '.join(packed.notes)}" if grown else ""
    return Check("size", abs(holds - claimed - grown) <= max(0.01 * claimed, 4.0 * len(state.tensors)), text)


def _check_logits(
    path: Path, kind: str, inputs: Tensor, logits: Tensor, net: nn.Module | None, trusted: bool, tolerance: float
) -> Check:
    if kind == "packed" and net is None:
        return Check("logits", None, "a packed file holds no architecture: give the network to run it")
    if kind == "torch_export" and not trusted:
        return Check("logits", None, "torch evaluates expressions of the file when it loads it: give trusted=True")
    try:
        found = _run(path, kind, inputs, net, trusted)
    except (ValueError, ModuleNotFoundError) as error:
        return Check("logits", None if isinstance(error, ModuleNotFoundError) else False, str(error))
    difference = _difference(found, logits)
    top1 = top1_agreement(found, logits)
    text = f"{len(inputs)} inputs, largest difference {difference:.3g} of the largest logit, top-1 agrees on {top1:.1%}"
    return Check("logits", difference <= tolerance, text)


def _run(path: Path, kind: str, inputs: Tensor, net: nn.Module | None, trusted: bool) -> Tensor:
    with torch.no_grad():
        if kind == "packed":
            assert net is not None
            return load(path, copy.deepcopy(net).cpu())(inputs)
        if kind == "onnx":
            return run_graph(read_model(path), inputs)[0]
        assert trusted
        return torch.export.load(io.BytesIO(path.read_bytes())).module()(inputs)


def _difference(one: Tensor, other: Tensor) -> float:
    if one.shape != other.shape or not bool(torch.isfinite(one).all()):
        return float("inf")
    return float((one - other).abs().max()) / max(float(other.abs().max()), 1e-30)
