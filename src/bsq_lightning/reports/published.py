"""Published points of the BSQ paper and of those it compares with, each figure with where it comes from.

None of them was read in the paper itself. Sizes are in the paper's counting: magnitude bits of the quantized weights.
"""

from dataclasses import dataclass

READ = "read in a secondary summary"
RECALLED = "recalled, unverified"


@dataclass(frozen=True)
class Published:
    """A point; accuracy in percent; ``act_precision`` is None where unknown."""

    name: str
    compression: float
    accuracy: float
    compression_from: str = RECALLED
    accuracy_from: str = RECALLED
    act_precision: int | None = None
    before_finetune: float | None = None

    @property
    def provenance(self) -> str:
        """Where both figures come from."""
        if self.compression_from == self.accuracy_from:
            return self.compression_from
        return f"size {self.compression_from}; accuracy {self.accuracy_from}"


RESNET20_CIFAR10 = (
    Published("BSQ 3e-3", 10.60, 92.60, act_precision=4, before_finetune=91.30),
    Published("BSQ 5e-3", 14.24, 92.32, READ, act_precision=4, before_finetune=90.98),
    Published("BSQ 7e-3", 19.24, 91.48, act_precision=4, before_finetune=90.42),
    Published("BSQ 1e-2", 23.44, 91.16, act_precision=4, before_finetune=90.35),
    Published("BSQ 2e-2", 36.63, 89.49, act_precision=4, before_finetune=85.77),
    Published("HAWQ", 13.11, 92.22, READ, act_precision=4),
    Published("LQ-Nets 3 bits", 10.67, 92.00, act_precision=32),
    Published("LQ-Nets 2 bits", 16.00, 91.80, act_precision=32),
    Published("DNAS", 11.60, 92.72, act_precision=32),
    Published("LQ-Nets 3 bits", 10.67, 91.60, act_precision=3),
    Published("PACT 3 bits", 10.67, 91.10, act_precision=3),
    Published("DoReFa 3 bits", 10.67, 89.90, act_precision=3),
    Published("BSQ 2e-3", 11.04, 92.16, act_precision=3),
    Published("LQ-Nets 2 bits", 16.00, 90.20, act_precision=2),
    Published("PACT 2 bits", 16.00, 89.70, act_precision=2),
    Published("DoReFa 2 bits", 16.00, 88.20, act_precision=2),
    Published("BSQ 5e-3", 18.85, 90.19, act_precision=2),
)
RESNET50_IMAGENET = (
    Published("BSQ 5e-3", 11.90, 75.29, READ),
    Published("LSQ 3 bits", 10.67, 75.80, READ),
    Published("BSQ 7e-3", 13.90, 75.16),
    Published("PACT 3 bits", 10.67, 75.30),
    Published("LQ-Nets 3 bits", 10.67, 74.20),
    Published("DoReFa 3 bits", 10.67, 69.90),
    Published("Deep Compression 3 bits", 10.41, 75.10),
    Published("HAQ", 10.57, 75.30),
)
INCEPTION_V3_IMAGENET = (
    Published("BSQ 2e-2", 12.89, 75.90, READ, READ),
    Published("HAWQ", 12.04, 75.52, READ, READ),
    Published("BSQ 1e-2", 11.38, 76.60),
    Published("Integer 8 bits", 4.00, 75.40),
    Published("Integer 7 bits", 4.57, 75.00),
    Published("RVQ", 10.67, 74.14),
)
_POINTS = {
    ("ResNet-20", "CIFAR-10"): RESNET20_CIFAR10,
    ("ResNet-50", "ImageNet"): RESNET50_IMAGENET,
    ("Inception-V3", "ImageNet"): INCEPTION_V3_IMAGENET,
}


def published_points(model: str, data: str, act_precisions: set[int]) -> list[Published]:
    """Points for this network and data set, at the activation bits of the runs where these are known.

    Example:
        >>> [point.name for point in published_points("ResNet-20", "CIFAR-10", {2})][-1]
        'BSQ 5e-3'
        >>> published_points("ResNet-20", "CIFAR-100", {4})
        []
    """
    float_bits = {32 if bits == 0 else bits for bits in act_precisions}
    points = _POINTS.get((model, data), ())
    return [point for point in points if point.act_precision is None or point.act_precision in float_bits]
