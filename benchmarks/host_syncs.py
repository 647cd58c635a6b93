"""How often a Lightning training step makes the host wait for the device, in steps that log nothing.

On a GPU torch's own sync debug mode tells. On a CPU nothing waits, so what would is counted: operations whose result
the host reads or whose shape depends on values, and Python's reads of a tensor.
"""

import tempfile
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.configured import bits_stage, build_trainer, callbacks, composed
from benchmarks.harness import Report, Settings

FIRST, LAST = 10, 40  # of an epoch; log_every_n_steps is 50, so none of them logs
READS = {Tensor.tolist, Tensor.numpy, Tensor.cpu, Tensor.__array__}
# The batch is made on the host, where reading costs nothing.
ON_THE_HOST = ("bsq_lightning/data/", "torch/utils/data/")


class Counts:
    """What waits, and tensors made from Python's numbers, which wait if they are made on the device; both by place."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.from_python: Counter[str] = Counter()
        self.modes = [Operations(self), Reads(self)]

    def __enter__(self) -> "Counts":
        for mode in self.modes:
            mode.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self.modes):
            mode.__exit__(None, None, None)


class Operations(TorchDispatchMode):
    """Operations that wait: item and its like, nonzero and its like, indexing with a mask."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        aten = torch.ops.aten
        if func.overloadpacket in (aten.index, aten.index_put, aten.index_put_):
            if any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]):
                note(self.counts.waiting, str(func))
        elif torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
            note(self.counts.waiting, str(func))
        elif func.overloadpacket is aten.lift_fresh:
            note(self.counts.from_python, str(func))
        return func(*args, **(kwargs or {}))


class Reads(TorchFunctionMode):
    """Reads that are no operation where the tensor is on the host already; ``to(device)`` is seen on a GPU only."""

    def __init__(self, counts: Counts) -> None:
        super().__init__()
        self.counts = counts

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READS:
            note(self.counts.waiting, f"Tensor.{func.__name__}")
        return func(*args, **(kwargs or {}))


class Watch(L.Callback):
    """Counts from the start of step FIRST to that of step LAST, everything between steps included."""

    def __init__(self, gpu: bool) -> None:
        self.gpu, self.counts = gpu, Counts()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self.gpu and batch_idx in (FIRST, LAST):
            warnings.showwarning = lambda message, *_: note(self.counts.waiting, str(message).split(" (")[0])
            warnings.filterwarnings("always", message=".*synchroniz.*")
            torch.cuda.set_sync_debug_mode("warn" if batch_idx == FIRST else "default")
        elif batch_idx == FIRST:
            self.counts.__enter__()
        elif batch_idx == LAST:
            self.counts.__exit__()


def note(found: Counter[str], what: str) -> None:
    """Under what it is and where: the calls that led to it, the innermost first."""
    stack = [frame for frame in traceback.extract_stack() if not frame.filename.endswith("benchmarks/host_syncs.py")]
    if any(part in frame.filename for frame in stack[-25:] for part in ON_THE_HOST):
        return
    calls = [f"{frame.filename.split('site-packages/')[-1]}:{frame.lineno} {frame.name}" for frame in stack[-12:]]
    found[" < ".join([what, *reversed(calls)])] += 1


def run(settings: Settings) -> Report:
    gpu = settings.device != "cpu"
    watch, before = Watch(gpu), warnings.showwarning
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed(
            "data=digits", "data.batch_size=32", "data.val_split=100", "~model.shortcut", "+model.depth=8",
            "model._target_=bsq_lightning.models.ResNetCifar", f"trainer.accelerator={'gpu' if gpu else 'cpu'}",
        )  # fmt: skip
        module, datamodule = bits_stage(cfg)
        trainer = build_trainer(
            cfg, max_epochs=1, limit_train_batches=LAST + 2, limit_val_batches=0, logger=False,
            callbacks=callbacks(cfg, Path(folder), watch),
        )  # fmt: skip
        try:
            trainer.fit(module, datamodule)
        finally:
            warnings.showwarning = before
    report, counts = Report(), watch.counts
    steps = LAST - FIRST
    report.add("host synchronizations per training step", counts.waiting.total() / steps, at_most=0.0)
    if not gpu:
        made = counts.from_python.total() / steps
        report.add("tensors made from Python's numbers per step, which wait if made on a GPU", made)
    report.numbers |= {"where": dict(counts.waiting.most_common()), "made": dict(counts.from_python.most_common())}
    for where, times in (counts.waiting + counts.from_python).most_common():
        print(f"{times} x {where}", flush=True)
    return report
