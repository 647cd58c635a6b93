"""What holds for every export format."""

import copy
from pathlib import Path

import pytest
import torch

from bsq_lightning.exporters import certify, simulated, verify
from bsq_lightning.exporters.certificate import certificate_path
from bsq_lightning.quantized_tensor import QuantizedState
from tests.exporters.exporters import ALL, FORMATS
from tests.exporters.pairs import Pair, deep, tiny

EVERY = pytest.mark.parametrize("name", ALL)


@pytest.fixture
def small() -> Pair:
    return tiny()


@EVERY
@pytest.mark.parametrize("make", [tiny, pytest.param(deep, marks=pytest.mark.slow)])
def test_the_file_computes_the_network(name: str, make: type, tmp_path: Path) -> None:
    net, state, x = make()
    before = copy.deepcopy(net.state_dict())
    exported = FORMATS[name].export(tmp_path / "file", net, state, x)
    assert exported.path == tmp_path / "file" and exported.size == exported.path.stat().st_size
    for images in (x, x[:1], torch.cat([x, x[:1] + 0.1])):  # whatever the batch
        with torch.no_grad():
            expected = simulated(net, state)(images)
            found = FORMATS[name].run(exported.path, copy.deepcopy(net), images)
        assert float((found - expected).abs().max()) <= FORMATS[name].tolerance * float(expected.abs().max())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


@EVERY
def test_the_card_travels(name: str, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    path = FORMATS[name].export(tmp_path / "file", net, state, x, card={"run": "a", "alpha": 0.5}).path
    assert FORMATS[name].read_card(path) == {"run": "a", "alpha": 0.5}


@EVERY
def test_the_same_network_is_the_same_bytes(name: str, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    for file in ("one", "other"):
        FORMATS[name].export(tmp_path / file, net, state, x, card={"b": 1, "a": 2}, overwrite=True)
    one, other = ((tmp_path / file).read_bytes() for file in ("one", "other"))
    assert one == other or name == "torch_export"  # torch's archive names its folder after the file, and a draw


@EVERY
def test_a_file_that_exists_stays(name: str, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    (tmp_path / "file").write_text("mine")
    with pytest.raises(FileExistsError, match="overwrite=True"):
        FORMATS[name].export(tmp_path / "file", net, state, x)
    assert (tmp_path / "file").read_text() == "mine"
    FORMATS[name].export(tmp_path / "file", net, state, x, overwrite=True)
    assert verify(tmp_path / "file").passed


@EVERY
def test_state_and_network_of_two_moments_are_refused(name: str, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    with torch.no_grad():
        net.get_parameter("conv2.weight").mul_(1.001)
    with pytest.raises(ValueError, match="the weights of conv2 are not what the quantized state says"):
        FORMATS[name].export(tmp_path / "file", net, state, x)
    other = QuantizedState({"nowhere": state.tensors["fc"]})
    with pytest.raises(ValueError, match=r"no parameter nowhere\.weight"):
        FORMATS[name].export(tmp_path / "file", net, other, x)
    assert not list(tmp_path.iterdir())


@EVERY
def test_a_full_disk_leaves_nothing(name: str, small: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, state, x = small

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bsq_lightning.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        FORMATS[name].export(tmp_path / "file", net, state, x)
    assert not list(tmp_path.iterdir())


@EVERY
def test_verify_repeats_the_certificate(name: str, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    exported = FORMATS[name].export(tmp_path / "file", net, state, x)
    certify(exported.path, net, state, x, report=exported.report)
    found = verify(exported.path, net, trusted=True)
    assert found.passed and [check.name for check in found.checks] == ["checksum", "form", "size", "logits"]
    assert all(check.passed or (check.name == "size" and name != "packed") for check in found.checks), found.lines()
    with pytest.raises(FileExistsError):
        certify(exported.path, net, state, x)


@EVERY
@pytest.mark.parametrize("certified", [True, False])
def test_a_cut_file_is_named(name: str, certified: bool, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    path = FORMATS[name].export(tmp_path / "file", net, state, x).path
    if certified:
        certify(path, net, state, x)
    path.write_bytes(path.read_bytes()[: int(0.8 * path.stat().st_size)])
    found = verify(path, net, trusted=True)
    assert not found.passed
    assert any(check.passed is False and "cut" in check.found for check in found.checks), found.lines()
    assert all(check.name != "logits" for check in found.checks), "it was run"


@EVERY
def test_one_other_byte_is_seen(name: str, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    path = FORMATS[name].export(tmp_path / "file", net, state, x).path
    certify(path, net, state, x)
    content = path.read_bytes()
    for place in torch.randint(0, len(content), (20,)).tolist():
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        found = verify(path, net, trusted=True)
        assert not found.passed and "altered" in found.lines()[0] + found.lines()[-1], found.lines()
        assert all(check.name != "logits" for check in found.checks), "it was run"


@EVERY
def test_another_certificate_is_seen(name: str, small: Pair, tmp_path: Path) -> None:
    net, state, x = small
    path = FORMATS[name].export(tmp_path / "file", net, state, x).path
    certify(path, net, state, x)
    place = certificate_path(path)
    place.write_bytes(place.read_bytes()[:-4] + b"\0\0\0\1")
    found = verify(path, net, trusted=True)
    assert not found.passed and "not a whole certificate" in found.lines()[0]


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x04cos\nsystem\n", b"\x08", b"PK\x03\x04junk", b"12345678{}"]
)
def test_foreign_files_are_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(content)
    (check,) = [check for check in verify(tmp_path / "file").checks if check.name == "form"]
    assert check.passed is False and ("foreign" in check.found or "cut or altered" in check.found)
    with pytest.raises(FileNotFoundError):
        verify(tmp_path / "nothing")
