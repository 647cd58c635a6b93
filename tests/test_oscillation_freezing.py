"""Which weights are held, when, and at which code; and that a run that resumes holds the same."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from bsq_lightning.callbacks import OscillationFreezing
from bsq_lightning.callbacks.oscillation_freezing import begun, follow_
from bsq_lightning.models import ResNetCifar
from bsq_lightning.module import QuantModule
from bsq_lightning.network import QuantizedNetwork
from bsq_lightning.quantizers import BitPlaneQuantizer, LatentQuantizer
from bsq_lightning.quantizers.lsq import LSQQuantizer
from tests.helpers import QUANTIZERS
from tests.quantizers.test_resume import StopAfter
from tests.test_callbacks import digits, trainer

CANNOT = (
    "bit_plane",
    "bit_plane_reference",
    "csq",
    "cpq_dropbits",
    "dorefa",
    "dorefa_per_channel",
    "msq",
    "fixed_point",
    "swis",
    "swis_c",
    "filters",
)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_codes_are_held_where_asked_and_others_stay(name: str) -> None:
    torch.manual_seed(0)
    case = QUANTIZERS[name]
    quantizer = case.build(torch.randn(6, 5), precision=3)
    before = quantizer.codes()
    where = torch.rand(6, 5) < 0.5
    if name in CANNOT:
        with pytest.raises(ValueError, match="code|levels"):
            quantizer.hold_codes_(where, before)
        return
    asked = torch.where(where, before.flip(0).clamp(before.min(), before.max()), torch.nan)
    quantizer.hold_codes_(where, asked)
    assert torch.equal(quantizer.codes(), torch.where(where, asked, before))
    assert not torch.equal(quantizer.codes(), before)


@pytest.mark.parametrize("units", ["scale", "weight"])
def test_a_layer_without_bits_is_left_alone(units: str) -> None:
    quantizer = LatentQuantizer(torch.randn(6, 5), precision=0, units=units)
    quantizer.hold_codes_(torch.rand(6, 5) < 0.5, torch.zeros(6, 5))
    assert not quantizer.codes().any() and not quantizer.weight().any()


def slowly(codes: list[int], momentum: float, threshold: float) -> tuple[int | None, int | None]:
    """The step at which a weight with these codes is held, and the code; the rule, one weight at a time."""
    last, direction, frequency, mean = codes[0], 0, 0.0, float(codes[0])
    for step, code in enumerate(codes[1:]):
        change = (code > last) - (code < last)
        oscillates = change != 0 and direction != 0 and change != direction
        frequency = momentum * oscillates + (1 - momentum) * frequency
        mean = momentum * code + (1 - momentum) * mean
        if frequency > threshold:
            return step, round(mean)
        last, direction = code, change or direction
    return None, None


def test_it_is_the_rule_weight_by_weight() -> None:
    torch.manual_seed(1)
    momentum, threshold, steps, size = 0.1, 0.25, 60, 40
    restless = torch.linspace(0, 1, size)  # from weights that rest to those that jump at every step
    jumps = torch.where(torch.rand(steps, size) < restless, torch.randint(-1, 2, (steps, size)), 0)
    path = torch.cat([torch.zeros(1, size), jumps.cumsum(0).clamp(-3, 3).float()])
    quantizer = LatentQuantizer(torch.ones(size), precision=2, step=1.0, units="weight")
    quantizer.latent.data = path[0].clone()
    record = begun(quantizer)
    held: list[tuple[int | None, int | None]] = [(None, None)] * size
    for step, codes in enumerate(path[1:]):
        quantizer.latent.data = codes + 0.3 * (torch.rand(size) - 0.5)
        follow_(record, quantizer, momentum, threshold)
        for i in record.frozen.nonzero().flatten().tolist():
            held[i] = (step, int(record.codes[i])) if held[i][0] is None else held[i]
            assert int(quantizer.codes()[i]) == held[i][1], "a weight that is held moved"
    assert held == [slowly(path[:, i].int().tolist(), momentum, threshold) for i in range(size)]
    assert 3 < sum(step is not None for step, _ in held) < size


def trained(folder: Path, stop_after: int | None = None, resume: bool = False) -> tuple[QuantModule, Any]:
    torch.manual_seed(0)
    network = QuantizedNetwork(ResNetCifar(8), partial(LSQQuantizer, precision=1))
    sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    live, freezing = QuantModule(network, num_classes=10, optimizer=sgd), OscillationFreezing(0.2, 0.3, 0.05)
    checkpoint = ModelCheckpoint(
        folder, "last", save_top_k=1, save_on_train_epoch_end=True, enable_version_counter=False
    )
    fit = trainer(folder, callbacks=[freezing, StopAfter(stop_after), checkpoint])
    fit.fit(live, digits(limit_train=192), ckpt_path=str(folder / "last.ckpt") if resume else None)
    return live, freezing


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_resumes_holds_the_same_weights(tmp_path: Path) -> None:
    whole, freezing = trained(tmp_path / "whole")
    trained(tmp_path / "stopped", stop_after=1)
    resumed, again = trained(tmp_path / "stopped", resume=True)
    state = resumed.state_dict()
    for key, value in whole.state_dict().items():
        assert torch.equal(value, state[key]) if isinstance(value, torch.Tensor) else value == state[key], key
    held = sum(int(record.frozen.sum()) for record in freezing.records.values())
    assert 0 < held < whole.network.scheme().size
    for name, record in freezing.records.items():
        assert torch.equal(record.frozen, again.records[name].frozen)
        codes = whole.network.quantizer(name).codes()
        assert torch.equal(codes[record.frozen], record.codes[record.frozen])
    whole.network.check_weights()


def test_planes_are_refused_by_name() -> None:
    network = QuantizedNetwork(ResNetCifar(8), BitPlaneQuantizer)
    module = QuantModule(network, num_classes=10, optimizer=partial(torch.optim.SGD, lr=0.1))
    with pytest.raises(ValueError, match="layer conv1 in stage bits: BitPlaneQuantizer has no float.*freeze="):
        OscillationFreezing().check(module, 10)


@pytest.mark.parametrize("wrong", [{"momentum": 0}, {"start": 1.5}, {"end": -0.1}])
def test_wrong_settings_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"freeze.{next(iter(wrong))} is between"):
        OscillationFreezing(**wrong)
