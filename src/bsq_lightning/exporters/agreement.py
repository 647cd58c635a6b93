"""Whether another arithmetic computes the same quantized network, decided at every place where activations are rounded.

Two exact implementations sum in another order, so now and then a value lies on the two sides of a rounding boundary,
and one flipped code changes all that follows. Logits alone then tell nothing. So the float simulation is led along the
other's codes: at each site its own value, not yet rounded, is compared with the code the other has chosen, and it goes
on from that code. What is left is the error of one layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bsq_lightning.exporters.pair import Rounding, hook_activations_, plain_copy
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState


@dataclass(frozen=True)
class SiteAgreement:
    """One site over all inputs.

    Args:
        site: name of the module.
        codes: how many were compared.
        differ: how many are not what the float simulation rounds to.
        beyond: by how many steps the worst of these lies past the rounding boundary; 0 for ties.
        levels: steps from 0 to the end of the range.
    """

    site: str
    codes: int
    differ: int
    beyond: float
    levels: int


@dataclass(frozen=True)
class Agreement:
    """Two arithmetics of one network.

    Args:
        sites: in the order of the network.
        logits: largest difference once all codes are the same, as a share of the largest logit.
        free: the same where each follows its own codes.
        top1: share of inputs with the same largest logit, each following its own codes.
    """

    sites: tuple[SiteAgreement, ...]
    logits: float
    free: float
    top1: float

    @property
    def differ(self) -> int:
        """Codes that differ, at all sites."""
        return sum(site.differ for site in self.sites)

    @property
    def beyond(self) -> float:
        """Steps past the boundary, at the worst site."""
        return max((site.beyond for site in self.sites), default=0.0)

    def check(self, what: str, activations: float, logits: float) -> None:
        """Raises ValueError, naming the worst site, beyond either tolerance.

        Args:
            what: computes the other side.
            activations: how far beyond a tie a code may have been rounded otherwise, as a share of the site's range.
            logits: allowed difference as a share of the largest.
        """
        worst = max(self.sites, key=lambda site: site.beyond / site.levels, default=None)
        if worst is not None and not worst.beyond <= activations * worst.levels:
            raise ValueError(
                f"{what} does not compute the quantized network: at {worst.site} {worst.differ} of {worst.codes} codes "
                f"differ, by up to {worst.beyond:.3g} steps beyond a tie; {activations * worst.levels:.3g} are allowed"
            )
        if not self.logits <= logits:
            raise ValueError(
                f"{what} does not compute the quantized network: logits differ by {self.logits:.3g} of the largest; "
                f"{logits:g} is allowed"
            )

    def as_dict(self) -> dict[str, float | int]:
        """Plain numbers for a card."""
        return {
            "codes": sum(site.codes for site in self.sites), "codes_that_differ": self.differ,
            "steps_beyond_a_tie": self.beyond, "logits": self.logits, "logits_free": self.free, "top1": self.top1,
        }  # fmt: skip


class _Led(Rounding):
    """Takes the codes of the other, and tells how far its own value is from rounding to them."""

    def __init__(self, activation: QuantizedActivation, codes: Sequence[Tensor], found: list[SiteAgreement]) -> None:
        super().__init__(activation)
        self.codes, self.found = list(codes), found

    def __call__(self, x: Tensor) -> Tensor:
        steps, step = self.unrounded(x)
        codes = self.codes.pop(0).to(steps.dtype)
        if codes.shape != steps.shape:
            raise ValueError(f"{self.activation.site} has codes of {list(codes.shape)}, not of {list(steps.shape)}")
        differ = int((steps.round() != codes).sum())
        beyond = float(((steps - codes).abs() - 0.5).max()) if differ else 0.0
        self.found.append(SiteAgreement(self.activation.site, codes.numel(), differ, max(0.0, beyond), self.levels))
        return codes * step


def compare(
    net: nn.Module, state: QuantizedState, inputs: Tensor, codes: Mapping[str, Sequence[Tensor]], logits: Tensor
) -> Agreement:
    """Compares the float simulation with codes and logits that something else computed.

    Args:
        net: plain network.
        state: its quantized tensors and activations.
        inputs: ``[N, ...]``.
        codes: by site, what the other rounded to at each call, shaped as the activation; every site of ``state``.
        logits: of the other, ``[N, classes]``.

    Returns:
        Where and by how much they differ.
    """
    found: list[SiteAgreement] = []
    plain = plain_copy(net, state)
    with torch.no_grad():
        free = hook_activations_(plain, state.activations)(inputs)
        led = hook_activations_(plain, state.activations, lambda site: _Led(site, codes[site.site], found))(inputs)
    return Agreement(tuple(found), _difference(logits, led), _difference(logits, free), top1_agreement(logits, free))


def top1_agreement(one: Tensor, other: Tensor) -> float:
    """Share of rows with the same largest entry."""
    return float((one.argmax(1) == other.argmax(1)).float().mean())


def _difference(one: Tensor, other: Tensor) -> float:
    """Largest difference as a share of the largest entry; infinite where either has none."""
    difference = float((one.double() - other.double()).abs().max())
    return difference / max(float(other.abs().max()), 1e-30) if torch.isfinite(one).all() else float("inf")
