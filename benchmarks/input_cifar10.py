"""Input of CIFAR-10: our loader against the usual pipeline, and the share of a training step spent waiting for it."""

import os
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.benchmark import timer
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.harness import Report, Settings, SkipRow, Spread, alternate, ratio
from benchmarks.sides import bsq, quantized, resnet, trained_step
from bsq_lightning.data import CIFAR10DataModule


class PerImage(Dataset[tuple[Tensor, int]]):
    """Images one by one through torchvision's transforms, as nearly every CIFAR-10 script has them."""

    def __init__(self, images: list[Image.Image], labels: list[int]) -> None:
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(CIFAR10DataModule.mean, CIFAR10DataModule.std),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]  # type: ignore[return-value]


def cifar10(settings: Settings, **options: object) -> CIFAR10DataModule:
    """The real images, never downloaded."""
    folder = os.environ.get("BSQ_DATA", "")
    if not folder or not Path(folder, CIFAR10DataModule.folder).is_dir():
        raise SkipRow(f"BSQ_DATA is not set to a folder with {CIFAR10DataModule.folder}")
    limit = settings.choose(None, 640)
    datamodule = CIFAR10DataModule(download=False, val_split=0, batch_size=128, limit_train=limit, **options)  # type: ignore[arg-type]
    datamodule.setup()
    return datamodule


def run(settings: Settings) -> Report:
    datamodule = cifar10(settings)
    chosen = datamodule.split[0]
    pixels, labels = datamodule.images.plain[0, chosen]
    pictures = [Image.fromarray(image.numpy()) for image in pixels.permute(0, 2, 3, 1)]
    usual = DataLoader(
        PerImage(pictures, labels.tolist()),
        batch_size=128,
        shuffle=True,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
    )
    ours = datamodule.train_dataloader()
    sides = {"ours": lambda: sum(len(y) for _, y in ours), "torchvision": lambda: sum(len(y) for _, y in usual)}
    seconds = alternate(sides, settings.choose(5, 2), warmup=1)

    report = Report()
    for name, values in seconds.items():
        report.add(f"CIFAR-10 input, {name}", Spread.of([len(chosen) / s for s in values]), "images/s")
    speed = ratio(seconds["torchvision"], seconds["ours"])
    report.add("CIFAR-10 input, ours / torchvision", speed, "x", at_least=10.0)
    waiting = share_of_waiting(datamodule, settings)
    report.add("CIFAR-10 input, share of a ResNet-20 step", Spread.of(waiting, 100), "%", at_most=2.0)
    report.numbers["seconds"] = seconds
    return report


def share_of_waiting(datamodule: CIFAR10DataModule, settings: Settings) -> list[float]:
    """Time until the next batch is there, of that and the step on it."""
    network = quantized(resnet(settings.choose(20, 8)), device=settings.device)
    optimizer, shares = bsq(network), []
    batches = iter(datamodule.train_dataloader())
    for _ in range(settings.choose(40, 4)):
        start = timer()
        images, labels = (part.to(settings.device) for part in next(batches))
        there = timer()
        trained_step(network, optimizer, (images, labels))()
        shares.append((there - start) / (timer() - start))
    return shares[settings.choose(5, 1) :]  # the first batches draw the epoch's crops and warm up
