"""``ptq`` as a command: a run folder like any other, of every method, and what cannot be quantized is said."""

import json
from pathlib import Path

import pytest
import torch

from bsq_lightning.cards import Card
from bsq_lightning.cli.run.opening import open_run
from bsq_lightning.exporters import verify
from bsq_lightning.ptq import main
from bsq_lightning.quantized_tensor import load_state
from bsq_lightning.reports.runs import read_run
from bsq_lightning.scheme import Scheme
from tests.cli.commands import TINY, run

METHODS = {
    "round": ["ptq=round", "ptq.precision=3", "first_last={_target_: bsq_lightning.post_training.Round, precision: 8}"],
    "truncate": ["ptq=truncate", "ptq.precision=3"],
    "multipoint": ["ptq=multipoint", "ptq.precision=3", "ptq.threshold=0.01"],
    "swis": ["ptq=swis", "ptq.shifts=2.5", "ptq.schedule=greedy"],
    "swis_c": ["ptq=swis_c", "fold=false"],
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "trained"
    code, output = run("train", *TINY, f"hydra.run.dir={folder}")
    assert code == 0, output
    return folder


def quantize(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> None:
    monkeypatch.chdir(folder.parent)
    monkeypatch.setattr("sys.argv", ["ptq", *arguments, f"hydra.run.dir={folder}"])
    main()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_leaves_a_run_folder_like_any_other(
    method: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    quantize(monkeypatch, folder, f"run={trained}", "stage=float", "images=64", *METHODS[method])
    printed = capsys.readouterr().out
    assert "layers before and after" in printed and "keep their class" in printed
    assert ("operations" in printed) == (method == "multipoint")

    state = load_state(folder / "quantized.safetensors")
    summary = json.loads((folder / "summary.json").read_text())
    scheme = Scheme.load(folder / "scheme.json")
    assert summary["sizes"] == scheme.sizes() == state.scheme().sizes()
    assert scheme.bits("signed") == sum(tensor.storage_bits() for tensor in state.tensors.values())
    if method == "round":
        assert sorted(set(scheme.precisions().values())) == [3, 8]

    opened = open_run(str(folder), [])  # what evaluate does
    for name, tensor in state.tensors.items():
        assert torch.equal(opened.module.network.net.get_parameter(f"{name}.weight"), tensor.dequantize())
    tested = opened.experiment.test_trainer().test(opened.module, opened.datamodule, verbose=False)[0]
    assert tested["test/acc"] == opened.accuracy == summary["accuracy"]["final"]["test/acc"]
    norms = [m for m in opened.module.network.net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert bool(norms) == (method == "swis_c")

    read = read_run(folder)
    assert (read.state, read.problems) == ("done", [])
    assert read.test_accuracy == summary["accuracy"]["final"]["test/acc"]
    assert summary["accuracy"]["float"] == json.loads((trained / "summary.json").read_text())["accuracy"]["float"]

    card = Card.load(folder)
    assert card["method.kind"]["value"] == "PTQ" and card["cost.weight_bits"] == scheme.bits("signed")
    assert card["model.float_accuracy"] == summary["accuracy"]["float"]["test/acc"]
    assert card["batchnorm.folded"] == ("no" if norms else "yes")

    layers = json.loads((folder / "layers.json").read_text())["layers"]
    assert [row["layer"] for row in layers] == list(state.tensors)
    for row in layers:
        assert 0 < row["weight_error"] < 1 and row["bits_before"] == 32
        assert row["bits"] == state.tensors[row["layer"]].storage_bits() / row["weights"]


def test_a_quantized_run_ships_and_a_kill_before_its_summary_costs_nothing(trained: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code, output = run("ptq", "ptq=multipoint", f"run={trained}", "stage=float", "images=64", f"hydra.run.dir={folder}")
    assert code == 0, output
    code, output = run("export", f"run={folder}")
    assert code == 0 and "points, stored as their sum in 32-bit float" in output, output  # named, not silent
    size = next(each for each in verify(folder / "export" / "network.safetensors").checks if each.name == "size")
    assert size.passed and "bytes larger than that: " in size.found, size.found
    before = load_state(folder / "quantized.safetensors")
    (folder / "summary.json").unlink()
    code, output = run("train", f"resume={folder}")
    assert code == 0, output
    again = load_state(folder / "quantized.safetensors")
    assert again.scheme() == before.scheme() and (folder / "summary.json").exists()
    assert all(torch.equal(again.tensors[n].dequantize(), tensor.dequantize()) for n, tensor in before.tensors.items())


def test_bits_are_shared_by_the_codes_that_bsq_found(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "run"
    quantize(monkeypatch, folder, f"run={trained}", "ptq=swis", "ptq.shifts=1", "images=64", "fold=false")
    found, shared = (load_state(each / "quantized.safetensors") for each in (trained, folder))
    for name, tensor in shared.tensors.items():
        assert torch.equal(tensor.step, found.tensors[name].step) and tensor.precision == found.tensors[name].precision
    assert shared.act_precision == found.act_precision > 0
    rows = {row["layer"]: row for row in json.loads((folder / "layers.json").read_text())["layers"]}
    assert all(rows[n]["bits_before"] == t.storage_bits() / t.codes.numel() for n, t in found.tensors.items())


CASES = {
    "nothing to quantize": ([], "give run=FOLDER, or model.weights=FILE"),
    "weights of another model": (["model=resnet32", "model.weights=WEIGHTS"], "do not fit"),
    "no run folder": (["run=/nonexistent"], "is not a run folder"),
    "no such stage": (["run=RUN", "stage=rewound"], "no checkpoint of rewound"),
    "two models": (["run=RUN", "model=resnet32"], "leave model out"),
    "no images": (["run=RUN", "images=0"], "images must be a whole number from 1 on, not 0"),
    "more images than there are": (["run=RUN", "images=100000"], "there are only"),
    "bits beyond a method": (["run=RUN", "ptq=multipoint", "ptq.precision=1"], "from 2 to 8, not 1"),
    "bits that are none": (["run=RUN", "ptq.precision=2.5"], "ptq.precision must be a whole number, not 2.5"),
    "half a shift": (["run=RUN", "ptq=swis", "ptq.shifts=0.5"], "from 1 to bits=8, not 0.5"),
    "a mean without a schedule": (["run=RUN", "ptq=swis", "ptq.shifts=2.5"], "schedule is greedy"),
    "less than a point": (["run=RUN", "ptq=multipoint", "ptq.max_size=0.5"], "of at least 1"),
    "preflight": (["run=RUN", "preflight=only"], "leave preflight out"),
    "biases": (["run=RUN", "quant.quantized_biases=[fc]"], "a bias has no output channels"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "said"), CASES.values(), ids=CASES.keys())
def test_one_message(
    arguments: list[str],
    said: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    places = {"run=RUN": f"run={trained}", "model.weights=WEIGHTS": f"model.weights={trained}/checkpoints/float.ckpt"}
    data = [] if any(each.startswith("run=") for each in arguments) else ["data=digits"]
    with pytest.raises(SystemExit) as ended:
        quantize(monkeypatch, tmp_path / "run", *(places.get(each, each) for each in arguments), *data)
    output = "".join(capsys.readouterr())
    assert ended.value.code == 1 and said in output, output
    assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


def test_calibration_needs_images(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "images" / "train" / "a").mkdir(parents=True)
    code, output = run(
        "ptq", "model=custom", "model._target_=bsq_lightning.models.ResNetCifar", "+model.depth=8",
        f"model.weights={trained}/checkpoints/float.ckpt", "data=image_folder", f"data.root={tmp_path / 'images'}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )  # fmt: skip
    assert code == 1 and "images" in output and "Traceback" not in output, output


def test_twice_is_refused(trained: Path, tmp_path: Path) -> None:
    for number, source in enumerate([trained, tmp_path / "0"]):
        code, output = run("ptq", f"run={source}", "images=64", f"hydra.run.dir={tmp_path / str(number)}")
        assert code == number, output
    assert "quantized without training already" in output


@pytest.mark.slow
def test_a_multirun_quantizes_each_point_from_the_same_run(trained: Path, tmp_path: Path) -> None:
    common = ["-m", f"run={trained}", "stage=float", "images=64", f"hydra.sweep.dir={tmp_path / 'sweep'}"]
    code, output = run("ptq", *common, "ptq.precision=2,17")
    assert code == 1 and "from 0 to 16, not 17" in output and "No point was started" in output, output
    code, output = run("ptq", *common, "ptq.precision=2,3")
    assert code == 0, output
    bits = [json.loads(path.read_text())["mean_precision"] for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert sorted(bits) == [2, 3]
    cards = [Card.load(path.parent) for path in (tmp_path / "sweep").glob("*/summary.json")]
    assert all(card["compute.hyperparameters_swept"] == ["ptq.precision"] for card in cards)
    code, output = run("report", f"runs={tmp_path / 'sweep'}")
    assert code == 0, output
