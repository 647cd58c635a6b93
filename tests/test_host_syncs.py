"""No training step waits for the device, except every ``log_every_n_steps``: nothing asks for a value on the host."""

import traceback
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from bsq_lightning.cli.building.data import build_datamodule
from bsq_lightning.cli.building.networks import build_module, build_net, build_network
from bsq_lightning.cli.building.trainers import build_callbacks, build_trainer
from tests.test_conf import composed

#: Their results are values, or have shapes, that the host must know.
READS = ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "bincount")
#: They bring a number of the host to the device, and wait until it is there.
SENDS = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


def place(name: str) -> list[str]:
    """Where that was called, but for the loader, which works on the host whatever the device."""
    stack = [frame for frame in traceback.extract_stack()[:-2] if "_dynamo" not in frame.filename]
    if any("torch/utils/data" in frame.filename for frame in stack):
        return []
    return [f"{name}\n{''.join(traceback.format_list(stack[-8:]))}"]


class Reads(TorchDispatchMode):
    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        self.places += place(name) if name in READS or name.startswith("_unique") else []
        return func(*args, **(kwargs or {}))


class Sends(TorchFunctionMode):
    def __init__(self, places: list[str]) -> None:
        super().__init__()
        self.places = places

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.places += place(func.__name__) if func in SENDS else []
        return func(*args, **(kwargs or {}))


class Watch(L.Callback):
    """Watches the second and the third step of an epoch, from the end of the first on."""

    def __init__(self) -> None:
        self.places: list[str] = []
        self.done = False
        self._modes = ExitStack()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 0:
            self._modes.enter_context(Reads(self.places))
            self._modes.enter_context(Sends(self.places))
        elif batch_idx == 2:
            self._modes.close()
            self.done = True


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("stage", "more"),
    [
        ("float", []),
        ("bits", ["trainer.precision=bf16-mixed", "trainer.gradient_clip_val=1.0", "channels_last=true"]),
        ("bits", ["quant=bsq_reference", "quant.act_precision=2"]),
        ("finetune", []),
    ],
)
def test_no_step_between_two_logging_steps_waits(stage: str, more: list[str], tmp_path: Path) -> None:
    cfg = composed(
        "experiment=quickstart", "model._target_=bsq_lightning.models.ResNetCifar", "+model.depth=8",
        "~model.shortcut", "data.limit_train=256", "data.batch_size=64", "trainer.accelerator=cpu", *more,
    )  # fmt: skip
    data = build_datamodule(cfg)
    module = build_module(cfg, build_network(cfg, build_net(cfg, 10), stage), stage, 10)
    watch = Watch()
    trainer = build_trainer(cfg, max_epochs=1, callbacks=[*build_callbacks(cfg, tmp_path, stage), watch], logger=False)
    trainer.fit(module, data)
    assert watch.done
    assert not watch.places, "\n".join(sorted(set(watch.places)))
