"""Files of a few bytes that ask for gigabytes: refused by name before anything is made in that size."""

import json
import pickle
import resource
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bsq_lightning.checkpoint_io import load_checkpoint, load_state
from bsq_lightning.data.numpy_pickle import read_numpy_pickle
from bsq_lightning.models import load_float_weights, resnet20
from bsq_lightning.plain_tensors import load_plain
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer

GIGABYTE = 2**30


def saved(path: Path, **more: Any) -> None:
    torch.save({"state_dict": {"a": torch.zeros(256)}, "stage": "float", "epoch": 0, **more}, path)


def rewritten(path: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes], packing: int = zipfile.ZIP_STORED) -> None:
    """A file of ``torch.save`` with other bytes in its members."""
    saved(path)
    with zipfile.ZipFile(path) as source:
        members = [(member, source.read(member)) for member in source.infolist()]
    with zipfile.ZipFile(path, "w", packing) as target:
        for member, content in members:
            target.writestr(member.filename, change(member, content))


def compressed(path: Path) -> None:
    """Storages and their size in the pickle grow to a gigabyte of zeros, which a megabyte packs."""
    number, larger = b"M\x00\x01", b"J" + struct.pack("<i", GIGABYTE // 4)  # 256 as pickled, and another number

    def change(member: zipfile.ZipInfo, content: bytes) -> bytes:
        if member.filename.endswith("data.pkl"):
            assert number in content
            return content.replace(number, larger)
        return content

    rewritten(path, change)
    with zipfile.ZipFile(path) as source:
        members = [(member.filename, source.read(member)) for member in source.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name, content in members:
            with target.open(name, "w") as file:
                if name.endswith("data/0"):
                    for _ in range(GIGABYTE // 2**22):
                        file.write(bytes(2**22))
                else:
                    file.write(content)


def overlapping(path: Path) -> None:
    """One member, of which the directory has a thousand entries."""
    saved(path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.filelist.extend([max(archive.filelist, key=lambda member: member.file_size)] * 1000)
        archive._didModify = True  # type: ignore[attr-defined]


def second_directory(path: Path) -> None:
    """Python looks for the directory before the end of the file, torch where the end says it is."""
    saved(path)
    content = path.read_bytes()
    end = -98 if content[-42:-38] == b"PK\x06\x07" else 0  # of 98 bytes where the archive has the ends of large ones
    at, number = (end + 48, struct.pack("<Q", 1)) if end else (-6, struct.pack("<L", 1))
    path.write_bytes(content[:at] + number + content[at + len(number) :])


def bytearray_of(number: int, legacy: bool = False) -> Callable[[Path], None]:
    hostile = b"\x80\x02}q\x00(X\x01\x00\x00\x00acbuiltins\nbytearray\nJ" + struct.pack("<i", number) + b"\x85Ru."

    def write(path: Path) -> None:
        if legacy:
            path.write_bytes(hostile)
        else:
            rewritten(path, lambda member, content: hostile if member.filename.endswith("data.pkl") else content)

    return write


def expanded(path: Path) -> None:
    saved(path, data=torch.zeros(1).expand(GIGABYTE))


#: How each is written, and what the refusal names beside the file.
TENSOR_FILES: dict[str, tuple[Callable[[Path], None], str]] = {
    "compressed": (compressed, "is compressed, and its .* bytes would become"),
    "overlapping": (overlapping, "members overlap"),
    "second directory": (second_directory, "directory|zip"),
    "bytearray": (bytearray_of(GIGABYTE), "builtins.bytearray"),
    "bytearray, legacy": (bytearray_of(GIGABYTE, legacy=True), "builtins.bytearray"),
    "expanded": (expanded, "takes .* bytes and .* are in the file"),
    "sparse": (lambda p: saved(p, data=torch.zeros(4).to_sparse()), "_rebuild_sparse_tensor"),
    "meta": (lambda p: saved(p, data=torch.zeros(2**40, device="meta")), "_rebuild_meta_tensor_no_storage"),
}
READERS = {
    "checkpoint": load_checkpoint,
    "weights": lambda path: load_float_weights(resnet20(), path),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", TENSOR_FILES)
def test_a_small_file_takes_no_gigabytes(kind: str, reader: str, tmp_path: Path) -> None:
    write, named = TENSOR_FILES[kind]
    path = tmp_path / "file.pt"
    write(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match=named) as refused:
        READERS[reader](path)
    assert str(path) in str(refused.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18, "kilobytes: a quarter of a gigabyte"


def resident(path: Path) -> int | None:
    """Kilobytes of a file that are in this process's memory; None where it is not mapped at all."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    found = [next(each for each in lines if each.startswith("Rss:")) for line in lines if line.endswith(str(path))]
    return sum(int(line.split()[1]) for line in found) if found else None


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what is in memory")
@pytest.mark.parametrize("where", ["network", "beside"])
def test_sizes_are_compared_before_a_number_is_read(where: str, tmp_path: Path) -> None:
    path, large = tmp_path / "last.ckpt", torch.zeros(2**23)  # 32 MB
    net = torch.nn.Linear(2, 2)
    content = {"state_dict": net.state_dict(), "stage": "float", "epoch": 0}
    if where == "network":
        content["state_dict"] = content["state_dict"] | {"bias": large}
    torch.save(content | ({"optimizer_states": [large]} if where == "beside" else {}), path)
    checkpoint = load_checkpoint(path)
    with pytest.raises(ValueError, match="last.ckpt .*(size mismatch|more than any optimizer keeps)"):
        load_state(net, checkpoint, path)  # type: ignore[arg-type]
    kilobytes = resident(path)
    assert kilobytes is not None and kilobytes < 2**13, "of 32 MB"
    if where == "network":
        with pytest.raises(ValueError, match="do not fit Linear: 1 of another shape"):
            load_float_weights(net, path)


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_what_torch_saves_is_read(new_format: bool, tmp_path: Path) -> None:
    path, shared = tmp_path / "file.pt", torch.arange(12.0)
    given = {"a": shared[:6].view(2, 3).t(), "b": [shared, (torch.tensor(True), torch.zeros(0))], "c": {1, 2}, "d": "x"}
    given["own"] = torch.nn.Parameter(shared.bfloat16())
    torch.save(given, path, _use_new_zipfile_serialization=new_format)
    read = load_plain(path)
    assert torch.equal(read["a"], given["a"]) and torch.equal(read["b"][0], shared) and read["c"] == {1, 2}
    assert torch.equal(read["own"], given["own"])


def test_a_safetensors_header_promises_no_more_than_the_file_has(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "F32", "shape": [GIGABYTE], "data_offsets": [0, 4 * GIGABYTE]}}).encode()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(64))
    with pytest.raises(ValueError, match="weights.safetensors"):
        load_float_weights(resnet20(), path)


#: Pickles of data sets: a number that names an object, and elements without a size.
PICKLES = {
    "names its objects by large numbers": b"\x80\x02}r" + struct.pack("<L", 2**27) + b"X\x01\x00\x00\x00aK\x01s.",
    "negative": b"\x80\x02}p-5\nX\x01\x00\x00\x00aK\x01s.",
}


@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_of_data_takes_no_gigabytes(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    path.write_bytes(PICKLES[kind])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        assert read_numpy_pickle(path) == {"a": 1}
    except ValueError as refused:
        assert str(path) in str(refused)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**18


def test_an_array_of_nothing_is_no_array_of_a_trillion(tmp_path: Path) -> None:
    path = tmp_path / "data_batch_1"
    hostile = b"\x80\x02}X\x01\x00\x00\x00acnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    kind = pickle.dumps(__import__("numpy").dtype("S0"), protocol=2)[2:-1]
    path.write_bytes(hostile + b"(K\x01J\x00\x00\x00\x7f\x85" + kind + b"\x89U\x00tbs.")
    with pytest.raises(ValueError, match="data_batch_1"):
        read_numpy_pickle(path)


# ---- what a checkpoint says of its quantizers ------------------------------------------------------------------------
SAVED: dict[str, tuple[Any, str]] = {
    **{f"{n} planes": (torch.zeros(2, n, 4, 5), f"planes is .2, {n}, 4, 5.*most 16 bits") for n in (17, 100, 10_000)},
    "three signs": (torch.zeros(3, 4, 4, 5), "planes is .3, 4, 4, 5"),
    "integers": (torch.zeros(2, 4, 4, 5, dtype=torch.int8), "planes holds torch.int8"),
    "text": ("planes", "planes holds str"),
    "of another tensor": (torch.zeros(2, 4, 4, 4), "another architecture.*planes"),
    "one number": (torch.tensor(1.0), "planes is "),
}  # fmt: skip


@pytest.mark.parametrize("kind", SAVED)
def test_planes_that_no_run_has_written_are_refused_at_loading(kind: str, tmp_path: Path) -> None:
    value, named = SAVED[kind]
    quantizer, path = BitPlaneQuantizer(torch.ones(4, 5)), tmp_path / "last.ckpt"
    before = quantizer.planes.clone()
    state = {**quantizer.state_dict(), "planes": value}
    with pytest.raises(ValueError, match=f"last.ckpt .*{named}"):
        load_state(quantizer, {"state_dict": state}, path)  # type: ignore[arg-type]
    assert torch.equal(quantizer.planes, before)


@pytest.mark.parametrize("bits", [17, -1, 2.5, True, None, "8", 10**9])
def test_a_precision_that_no_run_has_written_is_refused_at_loading(bits: Any, tmp_path: Path) -> None:
    quantizer = torch.nn.ModuleDict({"conv1": LatentQuantizer(torch.ones(4, 5), 4)})
    state = {**quantizer.state_dict(), "conv1._extra_state": bits}
    with pytest.raises(ValueError, match="last.ckpt .*conv1.precision must be a whole number of bits from 0 to 16"):
        load_state(quantizer, {"state_dict": state}, tmp_path / "last.ckpt")  # type: ignore[arg-type]
