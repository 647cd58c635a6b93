"""The step of ``plane_step.py`` on a CPU: one pass over the memory for all tensors, compiled where a compiler is.

Torch operations pass over planes and momentum about eight times. Below, each is read once and written once, which is
what the memory's bandwidth allows. The C++ beside this file takes under a second to compile and is compiled anew in
each process, so that no file of another process or version is ever loaded.
"""

from __future__ import annotations

import ctypes
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from bsq_lightning.ops.bit_planes import MAX_PRECISION
from bsq_lightning.ops.plane_tensors import PlaneTensors, Rates, check_tensors

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("plane_step.cpp")
# Contraction to fused multiply-adds would round differently from machine to machine.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",
         "-shared", "-fPIC", f"-DMAX_PRECISION={MAX_PRECISION}")  # fmt: skip
_DTYPES = {torch.float32: "float32", torch.float64: "float64", torch.bfloat16: "bfloat16"}


class _Layer(ctypes.Structure):
    """``struct Layer`` of the C++ source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            "planes", "momentum", "grad", "weight", "scale", "scale_momentum", "decay", "squares")),
        ("size", ctypes.c_int64), ("precision", ctypes.c_int32), ("clip", ctypes.c_int32),
    ]  # fmt: skip


@cache
def library() -> ctypes.CDLL | None:
    """The compiled step, or None where nothing can compile it (said once, with the reason)."""
    compiler = next((found for name in (os.environ.get("CXX"), "c++", "g++", "clang++")
                     if name and (found := shutil.which(name))), None)  # fmt: skip
    if compiler is None:
        log.info("no C++ compiler: bit planes take their step in torch operations, with the same result, slower")
        return None
    reason = b""
    # Not every compiler comes with OpenMP, and on macOS a second copy of it ends the process. Without: one thread.
    for threads in ([],) if sys.platform == "darwin" else (["-fopenmp"], []):
        try:
            # On a network file system the loaded file stays until the process ends.
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                target = str(Path(folder, "plane_step.so"))
                subprocess.run([compiler, *FLAGS, *threads, str(SOURCE), "-o", target], check=True, capture_output=True)
                return ctypes.CDLL(target)
        except (subprocess.CalledProcessError, OSError) as error:
            reason = getattr(error, "stderr", None) or str(error).encode()
    log.info("%s cannot compile the step of bit planes, which is taken in torch operations, slower: %s",
             compiler, reason.decode(errors="replace").strip()[-300:])  # fmt: skip
    return None


def plane_step_(tensors: Sequence[PlaneTensors], rates: Rates) -> None:
    """The step, for tensors on the CPU in float32 or float64, with planes in that dtype or in bfloat16."""
    check_tensors(tensors)
    compiled = library()
    assert compiled is not None
    compiled[f"step_{_DTYPES[tensors[0].planes.dtype]}"](
        (_Layer * len(tensors))(*(_layer(t) for t in tensors)), ctypes.c_int(len(tensors)),
        *(ctypes.c_double(rate) for rate in rates[:3]), ctypes.c_uint32(rates.seed),
        ctypes.c_int(torch.get_num_threads()),
    )  # fmt: skip


def _layer(t: PlaneTensors) -> _Layer:
    return _Layer(*(tensor.data_ptr() for tensor in t[:8]), t.weight.numel(), len(t.decay), t.clip)
