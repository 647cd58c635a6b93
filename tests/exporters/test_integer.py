"""Integers alone: the same codes as the float simulation, sums whose width is known, and what has no integer form."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from bsq_lightning.exporters import run_in_integers, simulated
from bsq_lightning.exporters.integer import rescale
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState, QuantizedTensor
from tests.exporters.pairs import deep, pair, tiny


@pytest.mark.parametrize("act_bits", [1, 2, 4, 8])
def test_codes_are_those_of_the_simulation(act_bits: int) -> None:
    for net, state, x in (tiny(3, act_bits), deep(act_bits)):
        run = run_in_integers(net, state, x)
        run.agreement.check("integers", 1e-6, 1e-4)
        assert run.agreement.differ <= 1e-4 * sum(site.codes for site in run.agreement.sites)
        assert len(run.agreement.sites) == len(state.activations) and not run.float_layers
        assert run.top1 == 1 or run.agreement.differ


def test_nothing_but_integers_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    from bsq_lightning.exporters import integer

    seen = []

    class Watched(integer._Value):
        def __init__(self, *args: object) -> None:
            super().__init__(*args)  # type: ignore[arg-type]
            seen.append(bool((self.codes == self.codes.round()).all()))

    monkeypatch.setattr(integer, "_Value", Watched)
    run_in_integers(*deep())
    assert len(seen) > 100 and all(seen)


def test_sums_by_hand() -> None:
    net = nn.Sequential(nn.ReLU(), nn.Linear(3, 2, bias=False))
    codes = torch.tensor([[3, -3, 3], [1, 0, 0]], dtype=torch.int32)
    with torch.no_grad():
        net[1].weight.copy_(codes * 0.5)
    state = QuantizedState(
        {"1": QuantizedTensor(codes, torch.tensor(0.5), 2)}, (QuantizedActivation("0", "output", 4, None, 15.0),)
    )
    run = run_in_integers(net, state, torch.tensor([[15.0, 0.0, 15.0], [1.0, 2.0, 3.0]]))
    (sums,) = run.accumulators
    assert (sums.layer, sums.reads) == ("1", "codes")
    assert sums.bits == 9  # 9 * 15 = 135 at most: 8 bits and a sign
    assert sums.seen == 8  # 3 * 15 + 3 * 15 = 90
    assert run.logits.tolist() == [[45.0, 7.5], [3.0, 0.5]]
    assert run.as_dict()["accumulator_bits"] == {"1": 9} and run.as_dict()["wider_than_32_bits"] == []


def test_layers_that_stay_float_are_named() -> None:
    net, state, x = tiny()
    tensors = {name: each for name, each in state.tensors.items() if name != "fc"}
    run = run_in_integers(net, replace(state, tensors=tensors), x)
    assert run.float_layers == ("fc",) and run.agreement.differ == 0


def test_what_has_no_integer_form_or_does_not_fit_is_named() -> None:
    net, state, x = tiny()
    with pytest.raises(OverflowError, match=r"conv1: a value of .* does not fit in 32 bits .* fewer fraction_bits"):
        run_in_integers(net, state, 1e4 * x)
    with pytest.raises(ValueError, match="needs a fixed range"):
        run_in_integers(net, replace(state, activations=(replace(state.activations[0], range=0.0),)), x)
    odd, odd_state, x = pair(nn.Sequential(nn.Conv2d(3, 2, 1), nn.GELU(), nn.ReLU()).eval(), lambda _: 3, 4, x)
    with pytest.raises(ValueError, match="1: GELU has no integer form here"):
        run_in_integers(odd, odd_state, x)


def test_rescaling_rounds_as_exact_arithmetic_does() -> None:
    codes = torch.randint(-(2**20), 2**20, (5000,)).double()
    for ratio in (0.5, 0.25, 3.0, 1 / 3, 1e-4, 0.7310585786300049):
        exact = (codes * ratio).round()
        found = rescale(codes, torch.tensor(ratio, dtype=torch.float64))
        tie = (codes * ratio - (codes * ratio).floor() - 0.5).abs() < 1e-3
        assert torch.equal(found[~tie], exact[~tie]) and float((found - exact).abs().max()) <= 1
    halves = torch.arange(-9, 10).double()
    assert torch.equal(rescale(halves, torch.tensor(0.5, dtype=torch.float64)), (halves / 2).round())
    assert torch.equal(rescale(halves.view(-1, 1), torch.zeros(1, dtype=torch.float64)), torch.zeros(19, 1).double())


def test_the_simulation_itself_is_not_touched() -> None:
    net, state, x = tiny()
    before = simulated(net, state)(x)
    run_in_integers(net, state, x)
    assert torch.equal(simulated(net, state)(x), before)
