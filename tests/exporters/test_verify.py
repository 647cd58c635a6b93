"""verify: what it does not run, what it says it did not look at, and programs that would run code."""

import pickle
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bsq_lightning.exporters import certified_beside, certify, export_packed, export_torch, read_certificate, verify
from bsq_lightning.exporters.certificate import certificate_path
from bsq_lightning.quantized_tensor import Points
from tests.exporters.pairs import tiny


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


def rezipped(path: Path, change: dict[str, bytes | None], compression: int = zipfile.ZIP_STORED) -> None:
    """Writes an archive again with other content in some of its parts."""
    with zipfile.ZipFile(path) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    folder = next(iter(parts)).partition("/")[0]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (parts | {f"{folder}/{name}": content for name, content in change.items()}).items():
            if content is not None:
                archive.writestr(name, content)


def test_a_program_is_not_run_for_a_stranger(tmp_path: Path) -> None:
    net, state, x = tiny()
    path = export_torch(tmp_path / "net.pt2", net, state, x).path
    certify(path, net, state, x)
    logits = verify(path).checks[-1]
    assert logits.name == "logits" and logits.passed is None and "trusted=True" in logits.found
    assert verify(path).passed and verify(path, trusted=True).checks[-1].passed


@pytest.mark.parametrize("place", ["weights", "extra", "compressed", "config", "missing"])
def test_a_program_that_would_run_code_is_foreign(place: str, tmp_path: Path) -> None:
    net, state, x = tiny()
    path, marker = export_torch(tmp_path / "net.pt2", net, state, x).path, tmp_path / "ran"
    config = "data/weights/model_weights_config.json"
    with zipfile.ZipFile(path) as archive:
        text = next(archive.read(name) for name in archive.namelist() if name.endswith(config))
    bomb = pickle.dumps(Bomb(marker))
    change: dict[str, bytes | None] = {
        "weights": {
            "data/weights/weight_0": bomb,
            config: text.replace(b'"use_pickle": false', b'"use_pickle": true', 1),
        },
        "extra": {"data/aotinductor/model/model.so": bomb},
        "compressed": {},
        "config": {config: b"[" * 100_000},
        "missing": {config: None},
    }[place]
    rezipped(path, change, zipfile.ZIP_DEFLATED if place == "compressed" else zipfile.ZIP_STORED)
    found = verify(path, trusted=True)
    assert not found.passed and ("foreign" in found.lines()[-1] or "altered" in found.lines()[-1]), found.lines()
    assert not marker.exists()


def test_a_packed_file_without_its_architecture_is_checked_as_far_as_it_goes(tmp_path: Path) -> None:
    net, state, x = tiny()
    path = export_packed(tmp_path / "net.safetensors", net, state).path
    found = verify(path)
    assert found.passed and [check.passed for check in found.checks] == [None, True, True, None]
    certify(path, net, state, x)
    found = verify(path)
    assert found.passed and "give the network" in found.checks[-1].found
    other = torch.nn.Linear(3, 2)
    assert not verify(path, other).passed


def test_certificates_hold_what_was_measured(tmp_path: Path) -> None:
    net, state, x = tiny()
    path = export_packed(tmp_path / "net.safetensors", net, state).path
    certify(path, net, state, x, report={"top1": 1.0})
    facts, inputs, logits = read_certificate(path)
    assert torch.equal(inputs, x) and logits.shape == (4, 5)
    assert facts["kind"] == "packed" and facts["bytes"] == path.stat().st_size and facts["report"] == {"top1": 1.0}
    assert facts["difference_to_network"] == 0 and facts["top1_to_network"] == 1


def test_other_logits_fail(tmp_path: Path) -> None:
    """A certificate of another network beside a file that is whole: the checksum tells; and so do the logits."""
    net, state, x = tiny()
    path = export_packed(tmp_path / "net.safetensors", net, state).path
    certify(path, net, state, x)
    other_net, other_state, _ = tiny()
    other = export_packed(tmp_path / "other.safetensors", other_net, other_state).path
    certificate_path(other).write_bytes(certificate_path(path).read_bytes())
    assert "altered" in verify(other, other_net).lines()[0]


def test_the_network_that_is_given_stays_as_it_is(tmp_path: Path) -> None:
    net, state, x = tiny()
    path = export_packed(tmp_path / "net.safetensors", net, state).path
    certify(path, net, state, x)
    other, *_ = tiny()
    before = other(x)
    assert verify(path, other).passed and torch.equal(other(x), before)


def test_what_only_floats_hold_is_larger_than_claimed_and_named(tmp_path: Path) -> None:
    net, state, x = tiny()
    fc = state.tensors["fc"]
    fc = replace(fc, extra=Points(fc.codes[None], torch.full((1, 5, 1), 0.01)))
    with torch.no_grad():
        net.get_parameter("fc.weight").copy_(fc.dequantize())
    path = export_packed(tmp_path / "net.safetensors", net, replace(state, tensors={**state.tensors, "fc": fc})).path
    size = next(check for check in verify(path, net).checks if check.name == "size")
    assert size.passed and f"{4 * fc.codes.numel()} bytes larger than that: fc: 2 points" in size.found


def test_files_of_other_networks_are_not_put_beside(tmp_path: Path) -> None:
    net, state, x = tiny()
    for name, (own, own_state, _) in (("one", (net, state, x)), ("other", tiny(5))):
        certify(export_packed(tmp_path / name, own, own_state).path, own, own_state, x)
    assert certified_beside(tmp_path / "new", state) == [tmp_path / "one"]
    assert certified_beside(tmp_path / "one", state) == []
