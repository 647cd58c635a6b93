"""Signals: what was ignored before a command stays so (`nohup`, `&` in a script), and everything is put back."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import lightning as L
import pytest
from omegaconf import OmegaConf

from bsq_lightning.callbacks import Preempted, Preemption
from bsq_lightning.cli.run.processes import _launch_config, stop_politely
from bsq_lightning.run_folder import RunFolder
from tests.cli.commands import TINY, start
from tests.test_callbacks import digits, module, trainer


class Sends(L.Callback):
    """Sends itself a signal after the first step."""

    def __init__(self, number: signal.Signals) -> None:
        self.number = number

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, index: int) -> None:
        if index == 1:
            os.kill(os.getpid(), self.number)


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def number(request: pytest.FixtureRequest) -> Iterator[signal.Signals]:
    before = signal.getsignal(request.param)
    yield request.param
    signal.signal(request.param, before)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("ignored", [True, False])
def test_training_stops_unless_the_signal_was_ignored(number: signal.Signals, ignored: bool, tmp_path: Path) -> None:
    before = signal.SIG_IGN if ignored else signal.SIG_DFL
    signal.signal(number, before)
    callbacks = [Sends(number), Preemption(folder=str(tmp_path))]
    fit = trainer(tmp_path, max_epochs=1, callbacks=callbacks, enable_checkpointing=False)
    if ignored:
        fit.fit(module(), digits())
    else:
        with pytest.raises(Preempted):
            fit.fit(module(), digits())
    assert fit.global_step == (4 if ignored else 2)
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("ignored", [True, False])
def test_so_does_the_rest_of_a_run(ignored: bool, tmp_path: Path) -> None:
    found = signal.getsignal(signal.SIGINT)
    before = signal.SIG_IGN if ignored else signal.default_int_handler
    ended = []

    def task(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        ended.append(True)

    signal.signal(signal.SIGINT, before)
    try:
        (tmp_path / "config.yaml").touch()
        cfg = OmegaConf.create({"until": None})
        if ignored:
            stop_politely(task, cfg, RunFolder(tmp_path))
        else:
            with pytest.raises(Preempted):
                stop_politely(task, cfg, RunFolder(tmp_path))
        assert ended == [True] * ignored
        assert signal.getsignal(signal.SIGINT) is before
        assert ("SIGINT" in _launch_config(1, 2).signals_to_handle) is not ignored
    finally:
        signal.signal(signal.SIGINT, found)


@pytest.mark.slow
def test_what_a_script_has_put_into_the_background_trains_on(tmp_path: Path) -> None:
    process = start("train", *TINY, f"hydra.run.dir={tmp_path}", interruptible=False)
    output = ""
    assert process.stdout
    for line in process.stdout:
        output += line
        process.send_signal(signal.SIGINT)
    assert process.wait() == 0, output
    assert RunFolder(tmp_path).is_finished
