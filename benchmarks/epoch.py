"""An epoch of the configured CIFAR-10 run through the Trainer against a bare loop of the same steps, alternating."""

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch.nn import functional as F
from torch.utils.benchmark import timer

from benchmarks.configured import bits_stage, build_trainer, callbacks, composed
from benchmarks.harness import Report, Settings, SkipRow, Spread, ratio


class Alternate(L.Callback):
    """Runs the bare loop before every epoch of the Trainer, and times both.

    The Trainer's epoch lasts to the start of the next one: checkpoint, metrics and all callbacks are in it.
    """

    def __init__(self, bare: Callable[[], object]) -> None:
        self.bare, self.started, self.in_steps = bare, 0.0, 0.0
        self.seconds: dict[str, list[float]] = {"bare loop": [], "Trainer": [], "Trainer, its steps": []}

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.started:
            self.seconds["Trainer"].append(timer() - self.started)
            self.seconds["Trainer, its steps"].append(self.in_steps)
        start = timer()
        self.bare()
        self.started = timer()
        self.seconds["bare loop"].append(self.started - start)

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.in_steps = timer() - self.started


def run(settings: Settings) -> Report:
    if not Path(os.environ.get("BSQ_DATA", ""), "cifar-10-batches-py").is_dir():
        raise SkipRow("BSQ_DATA is not set to a folder with cifar-10-batches-py")
    with tempfile.TemporaryDirectory() as folder:
        cfg = composed(
            "data=cifar10", "data.download=false",
            f"trainer.accelerator={'cpu' if settings.device == 'cpu' else 'gpu'}",
            *settings.choose([], ["data.limit_train=512"]),
        )  # fmt: skip
        module, datamodule = bits_stage(cfg)
        whole = len(datamodule.train_dataloader())
        steps = settings.choose(whole if settings.full_epoch else 60, 3)
        watch = Alternate(bare_loop(cfg, settings.device, steps))
        # The last epoch calibrates and is not timed.
        trainer = build_trainer(
            cfg, max_epochs=settings.choose(3 if settings.full_epoch else 6, 3) + 1, limit_train_batches=steps,
            limit_val_batches=0, logger=False, callbacks=callbacks(cfg, Path(folder), watch),
        )  # fmt: skip
        trainer.fit(module, datamodule)
    seconds = {name: values[1:] for name, values in watch.seconds.items()}  # the first ones warm up
    rounds = len(seconds["Trainer"])
    bare = seconds["bare loop"][:rounds]
    end = [a - b for a, b in zip(seconds["Trainer"], seconds["Trainer, its steps"], strict=True)]
    # What an epoch's end takes does not grow with its steps.
    whole_epoch = [
        (s + e * steps / whole) / b for s, e, b in zip(seconds["Trainer, its steps"], end, bare, strict=True)
    ]
    report = Report()
    report.add(f"{steps} steps in a bare loop", Spread.of(bare), "s")
    report.add(f"{steps} steps through the Trainer / bare loop", ratio(seconds["Trainer, its steps"], bare))
    report.add("end of an epoch: checkpoint, metrics, callbacks", Spread.of(end), "s")
    report.add(f"epoch of {whole} steps, reckoned from these / bare loop", Spread.of(whole_epoch), at_most=1.05)
    report.numbers |= {"seconds": seconds, "steps": steps}
    return report


def bare_loop(cfg: Any, device: str, steps: int) -> Callable[[], None]:
    """The same network, optimizer, loss and loader without Lightning."""
    module, datamodule = bits_stage(cfg)
    network = module.network.to(device)
    configured = module.configure_optimizers()
    optimizer = configured["optimizer"] if isinstance(configured, dict) else configured
    loader = datamodule.train_dataloader()

    def loop() -> None:
        loader.epochs.set_epoch(loader.epochs.epoch + 1)
        for _, (images, labels) in zip(range(steps), loader, strict=False):
            optimizer.zero_grad()
            F.cross_entropy(network(images.to(device)), labels.to(device)).backward()
            optimizer.step()

    return loop
