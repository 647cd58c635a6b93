"""Hostile files: what a file asks to be run is not run, and whoever reads it says which file it was.

A new reader of files is one row of READERS.
"""

import builtins
import io
import json
import logging
import os
import pickle
import pydoc
import shlex
import sys
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from bsq_lightning import evaluate, report, train
from bsq_lightning.checkpoint_io import load_checkpoint
from bsq_lightning.cli.building.networks import build_net
from bsq_lightning.cli.config import CONF_DIR
from bsq_lightning.cli.settled import settled_config
from bsq_lightning.data import CIFAR10DataModule, CIFAR100DataModule
from bsq_lightning.data.broken_images import BrokenImages
from bsq_lightning.data.image_folder import FolderImages
from bsq_lightning.data.numpy_pickle import read_numpy_pickle
from bsq_lightning.models import load_float_weights, resnet20
from bsq_lightning.scheme import Scheme
from tests.cli.commands import TINY

FORCED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


# ---- hostile files ---------------------------------------------------------------------------------------------------
class Payload:
    """Creates the marker when it is unpickled: by a shell, or by ``exec``."""

    def __init__(self, marker: Path, by_exec: bool = False) -> None:
        self.marker, self.by_exec = str(marker), by_exec

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        if self.by_exec:
            return builtins.exec, (f"open({self.marker!r}, 'w').close()",)
        return os.system, (touch(self.marker),)


class HostileNet(nn.Module):
    """A network that is pickled whole, so that its class acts when it is loaded."""

    def __init__(self, marker: Path) -> None:
        super().__init__()
        self.marker = str(marker)

    def __setstate__(self, state: dict[str, Any]) -> None:
        Path(state["marker"]).touch()


class Nested:
    """Asks torch to read a second file, which is inside, in its own way."""

    def __init__(self, marker: Path) -> None:
        inner = io.BytesIO()
        torch.save(Payload(marker), inner)
        self.content = inner.getvalue()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return torch.storage._load_from_bytes, (self.content,)


def touch(marker: Path | str) -> str:
    return f"touch {shlex.quote(str(marker))}"


def checkpoint(payload: Any) -> dict[str, Any]:
    """A payload where every reader of weights, checkpoints and images would come across it."""
    return {"state_dict": {"conv1.weight": payload}, "stage": "float", "epoch": 0, "data": payload}


def write_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(checkpoint(Payload(marker)), protocol=2))


def write_exec(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(Payload(marker, by_exec=True), protocol=0))


def write_zip(path: Path, marker: Path) -> None:
    torch.save(checkpoint(Payload(marker)), path)


def write_legacy(path: Path, marker: Path) -> None:
    torch.save(checkpoint(Payload(marker)), path, _use_new_zipfile_serialization=False)


def write_tar(path: Path, marker: Path) -> None:
    """The format of torch 0.1.1, whose members are pickles."""
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Payload(marker), protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def write_module(path: Path, marker: Path) -> None:
    torch.save(HostileNet(marker), path)


def write_nested(path: Path, marker: Path) -> None:
    torch.save(checkpoint(Nested(marker)), path)


def write_yaml(path: Path, marker: Path) -> None:
    before = path.read_text() if path.exists() else ""
    path.write_text(f"{before}more: !!python/object/apply:os.system [{json.dumps(touch(marker))}]\n")


def careless_pickle(path: Path) -> None:
    with path.open("rb") as file:
        pickle.load(file)


def careless_torch(path: Path) -> None:
    with path.open("rb") as file:  # by its content, whatever its name
        torch.load(file, weights_only=False)


def careless_yaml(path: Path) -> None:
    yaml.unsafe_load(path.read_text())


#: How each is written, and how a careless reader would read it.
KINDS: dict[str, tuple[Callable[[Path, Path], None], Callable[[Path], None]]] = {
    "pickle": (write_pickle, careless_pickle),
    "exec": (write_exec, careless_pickle),
    "zip": (write_zip, careless_torch),
    "legacy": (write_legacy, careless_torch),
    "tar": (write_tar, careless_torch),
    "module": (write_module, careless_torch),
    "nested": (write_nested, careless_torch),
    "yaml": (write_yaml, careless_yaml),
}
PICKLES = ("pickle", "exec", "zip", "legacy", "tar", "module", "nested")


# ---- readers ---------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Reader:
    """``read`` gets a run folder in which ``file`` is hostile; ``named`` is what its error must name."""

    file: str
    read: Callable[[Path], object]
    kinds: tuple[str, ...] = PICKLES
    named: str | None = None


def command(module: Any, *arguments: str) -> None:
    """A command as a user gives it, in this process."""
    sys.argv = [module.__name__, *arguments]
    module.main()


def resume(folder: Path) -> None:
    command(train, f"resume={folder}", "preflight=only")


def evaluate_run(folder: Path) -> None:
    command(evaluate, f"run={folder}")


def train_tiny(folder: Path, *arguments: str) -> None:
    command(train, *TINY, f"hydra.run.dir={folder}", "preflight=only", *arguments)


def take_float_stage(folder: Path) -> None:
    train_tiny(folder / "new", f"float_stage={folder}")


def cifar(kind: type[CIFAR10DataModule]) -> Callable[[Path], object]:
    def read(folder: Path) -> None:
        for name in {*kind.train_files, *kind.test_files}:
            if not (folder / name).exists():
                (folder / name).write_bytes(b"")
        kind(str(folder), download=False).setup()

    return read


def weights(name: str) -> Reader:
    return Reader(name, lambda folder: load_float_weights(resnet20(), folder / name))


def torchvision_weights(folder: Path) -> None:
    net = {"model": {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}}
    hydra_command(lambda _: build_net(OmegaConf.create(net), 10))


def timm_weights(folder: Path) -> None:
    pytest.importorskip("timm")
    model = {"_target_": "timm.create_model", "model_name": "resnet18", "pretrained": True}
    model["pretrained_cfg_overlay"] = {"file": str(folder / "timm.bin")}
    build_net(OmegaConf.create({"model": model}), 1000)


def hydra_command(task: Callable[[Any], object]) -> None:
    """What ``run_command`` does around a task, with a config of no importance."""
    from bsq_lightning.cli.config import plain_errors, run_command

    sys.argv = ["train", "hydra.run.dir=."]
    run_command(plain_errors(task), "train")


READERS: dict[str, Reader] = {
    "load_checkpoint": Reader("last.ckpt", lambda folder: load_checkpoint(folder / "last.ckpt")),
    "resume=FOLDER": Reader("checkpoints/last.ckpt", resume),
    "evaluate run=FOLDER": Reader("checkpoints/last.ckpt", evaluate_run),
    "float_stage=FOLDER": Reader("checkpoints/float.ckpt", take_float_stage),
    "CIFAR-10": Reader("data_batch_1", cifar(CIFAR10DataModule)),
    "CIFAR-100": Reader("train", cifar(CIFAR100DataModule)),
    "float weights .pt": weights("float.pt"),
    "float weights .pth": weights("float.pth"),
    "float weights .safetensors": weights("float.safetensors"),
    "model.weights=FILE": Reader(
        "float.pt", lambda folder: train_tiny(folder / "new", f"model.weights={folder / 'float.pt'}"), ("zip", "tar")
    ),
    "torchvision weights by name": Reader(
        "hub/checkpoints/resnet18-f37072fd.pth", torchvision_weights, named="torchvision.models.resnet18"
    ),
    "timm weights": Reader("timm.bin", timm_weights, named="timm.create_model"),
    "Scheme.load": Reader("scheme.json", lambda folder: Scheme.load(folder / "scheme.json"), (*PICKLES, "yaml")),
    "scheme=FILE": Reader(
        "scheme.json",
        lambda folder: train_tiny(
            folder / "new", "quant=from_scheme", "reg=none", f"scheme={folder / 'scheme.json'}"
        ),
        ("pickle",),
    ),
    "config, resume=FOLDER": Reader("config.yaml", resume, ("yaml", "pickle")),
    "config, evaluate run=FOLDER": Reader("config.yaml", evaluate_run, ("yaml", "pickle")),
    "config, float_stage=FOLDER": Reader("config.yaml", take_float_stage, ("yaml", "pickle")),
    "config, train in FOLDER": Reader("config.yaml", train_tiny, ("yaml", "pickle")),
    "config, report runs=FOLDER": Reader(
        "config.yaml", lambda f: command(report, f"runs={f}"), ("yaml", "pickle"), "its config.yaml cannot be read"
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny_config() -> str:
    with initialize_config_dir(CONF_DIR, version_base="1.3"):
        return OmegaConf.to_yaml(settled_config(compose("train", overrides=TINY)))


@pytest.fixture
def folder(tmp_path: Path, tiny_config: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder after its float stage, as far as commands look at it before they read what is hostile."""
    folder = tmp_path / "run"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(tiny_config)
    (folder / "stages.json").write_text('{"float": {}}')
    (folder / "metrics.csv").write_text("stage,epoch,step\nfloat,0,4\n")
    for name in ("last", "float"):
        torch.save({"state_dict": {}, "stage": "float", "epoch": 0}, folder / "checkpoints" / f"{name}.ckpt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", sys.argv)
    monkeypatch.setenv("TORCH_HOME", str(folder))
    # The commands set it for good; set and deleted here, so that it is as before when the test ends.
    monkeypatch.setenv(FORCED, "")
    monkeypatch.delenv(FORCED)
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler:  # Hydra's, of a command before, which writes to that test's output
            logging.root.removeHandler(handler)
    return folder


def refusal(read: Callable[[Path], object], folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    """What a reader says when it refuses; a command ends with 1 or a message, anything else raises ValueError."""
    with pytest.raises((ValueError, SystemExit)) as caught:
        read(folder)
    error = caught.value
    output = "".join(capsys.readouterr())
    assert not isinstance(error, SystemExit) or error.code not in (0, None), output
    assert "Traceback" not in output, output
    return f"{error} {output}"


@pytest.mark.parametrize(
    ("reader", "kind"),
    [pytest.param(reader, kind, id=f"{name}-{kind}") for name, reader in READERS.items() for kind in reader.kinds],
)
def test_no_reader_runs_a_payload(
    reader: Reader, kind: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write, careless = KINDS[kind]
    path, marker = folder / reader.file, tmp_path / "payload ran"
    write(path, marker)
    try:
        careless(path)
    except Exception:  # what it does afterwards is of no interest
        pass
    assert marker.exists(), "the file is not hostile, so nothing would be proved"
    marker.unlink()

    said = refusal(reader.read, folder, capsys)
    assert not marker.exists()
    assert (reader.named or str(path)) in said


@pytest.mark.parametrize("new_format", [True, False], ids=["zip", "legacy"])
def test_weights_by_name_that_are_plain_are_loaded(new_format: bool, folder: Path) -> None:
    from torchvision.models import resnet18

    net, loaded = resnet18(), []
    state = {
        name: nn.Parameter(value) if value.is_floating_point() else value for name, value in net.state_dict().items()
    }
    path = folder / READERS["torchvision weights by name"].file
    torch.save(OrderedDict(state), path, _use_new_zipfile_serialization=new_format)
    model = {"_target_": "torchvision.models.resnet18", "weights": "DEFAULT"}
    hydra_command(lambda _: loaded.append(build_net(OmegaConf.create({"model": model}), 10)))
    assert torch.equal(loaded[0].conv1.weight, net.conv1.weight)


# ---- what else a file can do -----------------------------------------------------------------------------------------
class Pointers:
    """An array whose type says, after numpy has looked, that its bytes are pointers to objects."""

    class Type:
        def __reduce__(self) -> tuple[Any, ...]:
            field = {"a": (np.dtype("O"), 0)}
            return np.dtype, ("V8", False, True), (3, "|", None, ("a",), field, 8, 1, 0)

    def __reduce__(self) -> tuple[Any, ...]:
        reconstruct = np.empty(1).__reduce__()[0]
        return reconstruct, (np.ndarray, (0,), b"b"), (1, (1,), self.Type(), False, b"A" * 8)


def test_an_array_cannot_hold_pointers_of_the_files_choice(tmp_path: Path) -> None:
    path = tmp_path / "test_batch"
    path.write_bytes(pickle.dumps({"labels": [Pointers()]}, protocol=2))
    with path.open("rb") as file:
        (array,) = pickle.load(file)["labels"]
    assert array.dtype["a"].hasobject and not array.dtype.hasobject  # touching its element ends the process
    with pytest.raises(ValueError, match="test_batch.*only numbers and text are read"):
        read_numpy_pickle(path)


def test_an_image_that_is_postscript_starts_no_ghostscript(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import EpsImagePlugin, Image

    path, marker = tmp_path / "cat.JPEG", tmp_path / "ghostscript ran"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n")
    (tmp_path / "gs").write_text(f"#!/bin/sh\n{touch(marker)}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    with pytest.raises(Exception), Image.open(path) as file:  # noqa: B017, the false Ghostscript paints nothing
        file.load()
    assert marker.exists()
    marker.unlink()
    with pytest.raises(ValueError, match="cannot decode the image .*cat.JPEG"):
        broken = BrokenImages([str(path)], "stop")
        FolderImages([(str(path), 0)], broken, torch.as_tensor, seed=0)[0, torch.tensor([0])]
    assert not marker.exists()


TARGETS: dict[str, dict[str, Any]] = {
    "os.system": {"command": "{touch}"},
    "os.popen": {"cmd": "{touch}"},
    "subprocess.run": {"args": ["touch", "{marker}"]},
    "subprocess.check_output": {"args": ["touch", "{marker}"], "_partial_": True},
    "builtins.exec": {"_args_": ["open({marker!r}, 'w').close()"]},
    "runpy.run_path": {"path_name": "{script}"},
    "yaml.unsafe_load": {"stream": "!!python/object/apply:os.system ['{touch}']"},
    "torch.load": {"f": "{pickle}", "weights_only": False},
}


@pytest.mark.parametrize("read", [resume, evaluate_run], ids=["resume", "evaluate"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_config_cannot_name_what_runs_commands(
    target: str, read: Callable[[Path], None], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker, script, hostile = tmp_path / "payload_ran", tmp_path / "script.py", tmp_path / "weights.pt"
    script.write_text(f"open({str(marker)!r}, 'w').close()")
    write_zip(hostile, marker)
    places = {"touch": touch(marker), "marker": str(marker), "script": str(script), "pickle": str(hostile)}

    def filled(value: Any) -> Any:
        if isinstance(value, list):
            return [filled(each) for each in value]
        return value.format(**places) if isinstance(value, str) else value

    arguments = {key: filled(value) for key, value in TARGETS[target].items()}
    plain = {key: value for key, value in arguments.items() if not key.startswith("_")}
    called: Any = pydoc.locate(target)
    opened = called(*arguments.get("_args_", ()), **plain)
    if target == "os.popen":
        opened.close()
    assert marker.exists()
    marker.unlink()

    config = OmegaConf.load(folder / "config.yaml")
    (folder / "checkpoints" / ("last.ckpt" if read is resume else "float.ckpt")).unlink()
    for group in ("reg", "data"):
        config[group] = {"_target_": target, **arguments}
    OmegaConf.save(config, folder / "config.yaml")
    assert target in refusal(read, folder, capsys)
    assert not marker.exists()


CALLBACK = "callbacks: {{x: {{_target_: os.mkdir, path: {marker}}}}}\n"


@pytest.mark.parametrize("where", ["node", "defaults", "header", "beside"])
def test_a_resumed_config_does_not_configure_hydra(
    where: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, marker = folder / "config.yaml", tmp_path / "payload_ran"
    callback = CALLBACK.format(marker=marker)
    beside = folder / "hydra" / "job_logging" / "plain.yaml"
    beside.parent.mkdir(parents=True)
    logs = "version: 1\nroot: null\n"
    both = f"# @package hydra\n{callback}job_logging: {{version: 1, root: null}}\n"
    beside.write_text(both if where in ("defaults", "beside") else logs)
    before = config.read_text()
    if where == "node":
        config.write_text(before + f"hydra: {{{callback.strip()}}}\n")
    elif where == "defaults":
        config.write_text(before + "defaults: [_self_, override hydra/job_logging: plain]\n")
    elif where == "header":
        config.write_text(f"# @package hydra\n{callback}")
    sys.argv = ["careless", f"hydra.run.dir={tmp_path / 'careless'}", "hydra/job_logging=plain"]
    with pytest.warns(UserWarning, match="has no attribute"):  # what os.mkdir returned is no callback
        hydra.main(version_base="1.3", config_path=str(folder), config_name="config")(lambda cfg: None)()
    assert marker.exists()
    marker.rmdir()
    if where in ("node", "defaults"):
        assert str(config) in refusal(resume, folder, capsys)
    elif where == "header":
        refusal(resume, folder, capsys)
    else:
        (folder / "checkpoints" / "last.ckpt").unlink()
        resume(folder)
    assert not marker.exists()
