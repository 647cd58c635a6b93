"""Compiled steps believe sizes: what a file may have brought is checked before every one of them, and the memory that
the compiled step touches is watched once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bsq_lightning.ops import plane_step_cpu
from bsq_lightning.ops.bit_planes import MAX_PRECISION
from bsq_lightning.ops.plane_step import IMPLEMENTATIONS, plane_step_
from bsq_lightning.ops.plane_tensors import PlaneTensors, Rates, check_tensors

RATES = Rates(lr=0.05, momentum=0.9, weight_decay=1e-3)


def tensors(number: int = 3, **changes: torch.Tensor) -> PlaneTensors:
    """A tensor of 4 x 5 weights with ``number`` planes."""
    generator = torch.Generator().manual_seed(0)
    planes = torch.rand(2, number, 4, 5, generator=generator)
    weight, scale, bits = torch.ones(4, 5), torch.tensor(1.0), torch.zeros(number)
    made = PlaneTensors(
        planes, torch.zeros_like(planes), torch.ones(4, 5), weight, scale, scale.clone(), bits, bits.clone(), True
    )
    return made._replace(**changes)


#: Wrong tensors, each with what the refusal names.
WRONG: dict[str, tuple[PlaneTensors, str]] = {
    "one plane too many": (tensors(MAX_PRECISION + 1), "17 bit planes.*1 to 16"),
    "100 planes": (tensors(100), "100 bit planes"),
    "10000 planes": (tensors(10_000), "10000 bit planes"),
    "no planes": (tensors(0), "0 bit planes"),
    "planes of another shape": (tensors(planes=torch.zeros(2, 3, 4, 4)), "planes .* is .*, not"),
    "flat planes": (tensors(planes=torch.zeros(3)), "0 bit planes"),
    "short momentum": (tensors(momentum=torch.zeros(2, 2, 4, 5)), "momentum of a tensor of 3 bits"),
    "short gradient": (tensors(grad=torch.zeros(4)), "grad of"),
    "short squares": (tensors(squares=torch.zeros(2)), "squares of"),
    "short decay": (tensors(decay=torch.zeros(2)), "decay of"),
    "no scale": (tensors(scale=torch.zeros(0)), "scale of"),
    "no momentum of the scale": (tensors(scale_momentum=torch.zeros(0)), "scale_momentum of"),
    "squares in bytes": (tensors(squares=torch.zeros(3, dtype=torch.uint8)), "squares is torch.uint8"),
    "momentum in half": (tensors(momentum=torch.zeros(2, 3, 4, 5, dtype=torch.float16)), "momentum is torch.float16"),
    "momentum elsewhere": (tensors(momentum=torch.zeros(2, 3, 4, 5, device="meta")), "momentum is .* on meta"),
    "scale of float64": (tensors(scale=torch.tensor(1.0, dtype=torch.float64)), "scale is torch.float64"),
    "sparse momentum": (tensors(momentum=torch.zeros(2, 3, 4, 5).to_sparse()), "momentum is .*torch.sparse_coo"),
}  # fmt: skip


@pytest.mark.parametrize("way", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", WRONG)
def test_every_way_refuses_what_it_would_read_beyond_its_end(way: str, case: str) -> None:
    if way == "cuda":
        pytest.importorskip("triton")
    wrong, named = WRONG[case]
    with pytest.raises(ValueError, match=named):
        IMPLEMENTATIONS[way]([wrong], RATES)
    with pytest.raises(ValueError, match=named):
        plane_step_([wrong], RATES)


def test_an_expanded_momentum_is_no_memory_of_its_own() -> None:
    expanded = tensors(momentum=torch.zeros(1).expand(2, 3, 4, 5))
    with pytest.raises(ValueError, match="momentum is not contiguous"):
        check_tensors([expanded])


def test_tensors_of_several_dtypes_are_no_one_step() -> None:
    double = PlaneTensors(*(t.double() if isinstance(t, torch.Tensor) else t for t in tensors()))
    with pytest.raises(ValueError, match="of one kind, not of 2"):
        check_tensors([tensors(), double])


#: Steps of all dtypes under the sanitizer, and then, past the checks, one that has to be caught.
WATCHED = """
import sys, torch
from bsq_lightning.ops import plane_step_cpu
plane_step_cpu.FLAGS += ("-fsanitize=address", "-fno-omit-frame-pointer")  # before anything compiles
from bsq_lightning.ops.plane_tensors import Rates
from tests.ops.test_plane_step import tensors
from tests.ops.test_plane_limits import tensors as one
assert plane_step_cpu.library() is not None
rates = Rates(0.05, 0.9, 1e-3, seed=3)
for dtype, kept in ((torch.float32, None), (torch.float64, None), (torch.float32, torch.bfloat16)):
    for _ in range(2):
        plane_step_cpu.plane_step_(tensors(dtype, kept), rates)
print("all steps taken", flush=True)
plane_step_cpu.check_tensors = lambda *_: None
plane_step_cpu.plane_step_([one(int(sys.argv[1]))], rates)
print("not caught")
"""


def test_the_compiled_step_touches_no_memory_but_its_own() -> None:
    compiler = next((c for name in (os.environ.get("CXX"), "c++", "g++") if name and (c := shutil.which(name))), None)
    if compiler is None or plane_step_cpu.library() is None:
        pytest.skip("no C++ compiler that can build the step")
    asked = subprocess.run([compiler, "-print-file-name=libasan.so"], capture_output=True, text=True)
    sanitizer = Path(asked.stdout.strip())
    if not sanitizer.is_absolute():
        pytest.skip(f"{compiler} comes without libasan, the library of AddressSanitizer")
    environment = {**os.environ, "LD_PRELOAD": str(sanitizer), "ASAN_OPTIONS": "detect_leaks=0", "OMP_NUM_THREADS": "2"}
    watched = subprocess.run(
        [sys.executable, "-c", WATCHED, str(MAX_PRECISION + 1)], env=environment, capture_output=True, text=True,
        timeout=170, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    if "all steps taken" not in watched.stdout and "AddressSanitizer" not in watched.stderr:
        pytest.skip(f"this process cannot run under AddressSanitizer: {watched.stderr.strip()[-300:]}")
    assert "all steps taken" in watched.stdout, watched.stderr[-2000:]
    assert "not caught" not in watched.stdout
    assert "AddressSanitizer" in watched.stderr and "overflow" in watched.stderr
