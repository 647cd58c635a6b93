"""Every way to take the step of bit planes gives the numbers of the one in torch operations."""

import logging
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from bsq_lightning.ops import plane_step, plane_step_cpu
from bsq_lightning.ops.bit_planes import merge_planes, plane_squares, split_planes
from bsq_lightning.ops.plane_step import IMPLEMENTATIONS, PlaneTensors, Rates, plane_step_, plane_step_torch_

RATES = Rates(lr=0.05, momentum=0.9, weight_decay=1e-3)
needs_compiler = pytest.mark.skipif(plane_step_cpu.library() is None, reason="no C++ compiler that can build the step")
#: Without a GPU, Triton's interpreter runs the GPU's kernels, in a process where nothing else imports Triton.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
MARKS = {"cpu": needs_compiler, "cuda": pytest.mark.skipif(not INTERPRETED, reason="runs in Triton's interpreter")}
WAYS = [pytest.param(step, id=name, marks=MARKS.get(name, ())) for name, step in IMPLEMENTATIONS.items()]
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
    sums, trials = torch.zeros_like(exact[0].planes), 20 if INTERPRETED else 400
    start = tensors(torch.float32, torch.bfloat16)[2]
    for trial in range(trials):
        ours = PlaneTensors(*(tensor.clone() for tensor in start[:8]), clip=start.clip)
        way([ours], rates._replace(seed=trial))
        sums += ours.planes.float()
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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("state", [torch.float32, torch.bfloat16])
def test_nan_is_passed_on(way, state: torch.dtype) -> None:
    """A bound in its place would leave a dead layer behind and a finite loss."""
    t = tensors(torch.float32, state)[2]
    t.grad.view(-1)[5] = torch.nan
    way([t], RATES)
    assert t.weight.isnan().all() and t.scale.isnan()
    assert t.planes.view(2, 8, -1)[:, :, 5].isnan().all() and int(t.planes.isnan().sum()) == 16


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_the_source_compiles() -> None:
    """The other tests are skipped where it does not."""
    assert plane_step_cpu.library() is not None


def test_momentum_of_other_bits_is_refused() -> None:
    t = tensors(torch.float32)[2]
    with pytest.raises(
        ValueError, match=r"momentum of a tensor of 8 bits is \[2, 7, 5, 7, 3, 3\], not \[2, 8, .*forget"
    ):
        plane_step_([t._replace(momentum=t.momentum[:, 1:])], RATES)


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


@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
def test_cuda_is_chosen_only_where_triton_works(caplog) -> None:
    """Its kernels cannot run on a CPU but in the interpreter; there as here it is tried, and said once."""
    caplog.set_level(logging.INFO)
    assert plane_step._gpu_kernels_work(torch.device("cpu")) == INTERPRETED
    assert ("Triton does not work here" in caplog.text) != INTERPRETED


@pytest.mark.skipif(INTERPRETED or find_spec("triton") is None, reason="no Triton, or inside its interpreter")
def test_the_kernels_for_a_gpu_in_triton_s_interpreter() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "pytest", str(Path(__file__)), "-k", "cuda", "-p", "no:cacheprovider"],
        env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0 and " passed" in result.stdout, result.stdout + result.stderr


@pytest.mark.slow
@pytest.mark.skipif(find_spec("triton") is None, reason="no Triton")
def test_the_kernels_compile_for_gpus() -> None:
    """Down to machine code, which needs no GPU."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget

    from bsq_lightning.ops import plane_step_cuda as kernels

    for full, stored in ((tl.float32, tl.float32), (tl.float32, tl.bfloat16), (tl.float64, tl.float64)):
        numbers = "*fp32" if full == tl.float32 else "*fp64"
        types = {"table": "*i64", "pieces": "*i64", "seed": "i32"}
        constants = {"full": full, "stored": stored, "magic": 1.0, "size": kernels.PIECE}
        for kernel in (kernels.dot_kernel, kernels.scale_kernel, kernels.step_kernel, kernels.squares_kernel):
            names = kernel.arg_names
            signature = {n: "constexpr" if n in constants else types.get(n, numbers) for n in names}
            chosen = {(names.index(n),): value for n, value in constants.items() if n in names}
            source = triton.compiler.ASTSource(fn=kernel, signature=signature, constexprs=chosen)
            assert triton.compile(source, target=GPUTarget("cuda", 80, 32)).asm["cubin"]
