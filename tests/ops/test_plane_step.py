"""Every way to take the step of bit planes gives the numbers of the one in torch operations."""

import logging

import pytest
import torch

from bsq_lightning.ops import plane_step_cpu
from bsq_lightning.ops.bit_planes import merge_planes, plane_squares, split_planes
from bsq_lightning.ops.plane_step import IMPLEMENTATIONS, PlaneTensors, Rates, plane_step_, plane_step_torch_

RATES = Rates(lr=0.05, momentum=0.9, weight_decay=1e-3)
needs_compiler = pytest.mark.skipif(plane_step_cpu.library() is None, reason="no C++ compiler that can build the step")
WAYS = [pytest.param(step, id=name, marks=needs_compiler if name == "cpu" else ())
        for name, step in IMPLEMENTATIONS.items()]  # fmt: skip
#: Shapes below, at and above the kernel's lanes and pieces, and precisions from 1 to 16.
SHAPES = [((3,), 1), ((4, 4), 2), ((5, 7, 3, 3), 8), ((2048,), 3), ((16, 130), 5), ((2, 2049), 16)]


def tensors(dtype: torch.dtype, state: torch.dtype | None = None, seed: int = 0) -> list[PlaneTensors]:
    """Tensors in the middle of a training: planes off the integers, some at their bounds, momentum under way."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    made = []
    for i, (shape, precision) in enumerate(SHAPES):
        codes = torch.randint(1 - 2**precision, 2**precision, shape, generator=generator).to(dtype)
        planes = (split_planes(codes, precision) + 0.3 * random(2, precision, *shape)).clamp_(0, 2)
        scale, clip = torch.tensor(0.7 + i, dtype=dtype), bool(i % 2)
        planes = planes.to(state or dtype)
        weight = merge_planes(planes).round_() * (scale / (2**precision - 1))
        made.append(
            PlaneTensors(
                planes, (0.1 * random(2, precision, *shape)).to(state or dtype), random(*shape), weight, scale,
                random(1).squeeze(), random(precision).abs(), torch.zeros(precision, dtype=dtype), clip,
            )
        )  # fmt: skip
    return made


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 1e-4)])
def test_every_way_gives_the_same_trajectory(way, dtype: torch.dtype, tolerance: float) -> None:
    ours, expected = tensors(dtype), tensors(dtype)
    for _ in range(3):
        way(ours, RATES)
        plane_step_torch_(expected, RATES)
    for a, b in zip(ours, expected, strict=True):
        for name in ("planes", "momentum", "scale", "scale_momentum", "squares"):
            assert torch.allclose(getattr(a, name), getattr(b, name), rtol=tolerance, atol=tolerance), name


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", [torch.float64, torch.float32, torch.bfloat16])
def test_weights_are_the_codes_of_the_new_planes_exactly(way, state: torch.dtype) -> None:
    dtype = torch.float64 if state == torch.float64 else torch.float32
    ours = tensors(dtype, state)
    way(ours, RATES)
    for t in ours:
        levels = 2 ** len(t.decay) - 1
        codes = merge_planes(t.planes).round_()
        codes = codes.clamp_(-levels, levels) if t.clip else codes
        assert torch.equal(t.weight, codes * (t.scale / levels))
        assert torch.allclose(t.squares, plane_squares(t.planes), rtol=1e-6)
        assert 0 <= float(t.planes.min()) and float(t.planes.max()) <= 2


@needs_compiler
@pytest.mark.parametrize("state", [torch.float64, torch.float32, torch.bfloat16])
def test_the_number_of_threads_changes_no_bit(state: torch.dtype) -> None:
    found, before = [], torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            torch.manual_seed(0)  # what is rounded by chance is drawn once for the step
            ours = tensors(torch.float64 if state == torch.float64 else torch.float32, state)
            plane_step_(ours, RATES)
            found.append([tensor for t in ours for tensor in t[:8]])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_sixteen_bits_are_right_on_average(way) -> None:
    """An update a hundredth of what bfloat16 can show is not lost: the mean of many roundings is the exact step."""
    exact = tensors(torch.float32, torch.bfloat16)[2:3]
    exact = [t._replace(planes=t.planes.float(), momentum=t.momentum.float()) for t in exact]
    rates = Rates(lr=1e-4, momentum=0.9, weight_decay=0.0)
    plane_step_torch_(exact, rates)
    sums, trials = torch.zeros_like(exact[0].planes), 400
    for trial in range(trials):
        torch.manual_seed(trial)
        ours = tensors(torch.float32, torch.bfloat16)[2:3]
        way(ours, rates)
        sums += ours[0].planes.float()
    # The spacing of bfloat16 is 1/128 below 2; a rounding's deviation is at most half of that.
    deviation = 1 / 256 / trials**0.5
    assert float((sums / trials - exact[0].planes).abs().max()) < 6 * deviation
    assert float((sums / trials - exact[0].planes).mean().abs()) < 6 * deviation / sums.numel() ** 0.5


def test_gradients_from_elsewhere_are_added() -> None:
    ours, expected = tensors(torch.float64)[2:4], tensors(torch.float64)[2:4]
    extra = [(0.1 * torch.rand_like(t.planes), torch.tensor(0.2, dtype=torch.float64)) for t in ours]
    plane_step_([t._replace(extra=own) for t, own in zip(ours, extra, strict=True)], RATES)
    for t, (planes, scale) in zip(expected, extra, strict=True):  # the first step's momentum takes them as they are
        t.momentum.add_(planes, alpha=1 / RATES.momentum)
        t.scale_momentum.add_(scale, alpha=1 / RATES.momentum)
    plane_step_torch_(expected, RATES)
    for a, b in zip(ours, expected, strict=True):
        assert torch.allclose(a.planes, b.planes, rtol=1e-13) and torch.allclose(a.scale, b.scale, rtol=1e-13)


@pytest.mark.parametrize(("compiler", "said"), [("", "no C++ compiler"), ("false", "cannot compile")])
def test_without_a_compiler_the_step_is_taken_in_torch(compiler: str, said: str, monkeypatch, caplog) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("CXX", compiler)
    if not compiler:
        monkeypatch.setenv("PATH", "")
    plane_step_cpu.library.cache_clear()
    try:
        ours, expected = tensors(torch.float32), tensors(torch.float32)
        plane_step_(ours, RATES)
        plane_step_torch_(expected, RATES)
        assert all(torch.equal(a.planes, b.planes) for a, b in zip(ours, expected, strict=True))
        assert caplog.text.count(said) == 1
    finally:
        plane_step_cpu.library.cache_clear()


@needs_compiler
def test_weights_in_channels_last_keep_their_layout() -> None:
    ours, expected = tensors(torch.float64)[2:3], tensors(torch.float64)[2:3]
    turned = [t._replace(weight=t.weight.to(memory_format=torch.channels_last)) for t in ours]
    turned[0].grad.data = turned[0].grad.to(memory_format=torch.channels_last)
    plane_step_(turned, RATES)
    plane_step_torch_(expected, RATES)
    assert turned[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(turned[0].weight, expected[0].weight, rtol=1e-13)
