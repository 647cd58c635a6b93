"""CSQ: bits, and the choice of bit planes, as sigmoids that harden (arXiv 2212.02770, DAC 2023).

The paper was not read; the equations are those of the authors' code (github.com/lawsonX/CSQ), without what looks
unintended there: the weights of the bits are constants (theirs are trained and decayed), nothing is decayed, and at the
end bits are hardened too (theirs stay sigmoids).
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.ops.bit_planes import merge_planes, split_planes
from bsq_lightning.ops.uniform import levels, max_step, quantize
from bsq_lightning.quantized_tensor import Planes, QuantizedTensor
from bsq_lightning.quantizers.base import Adjustment, LatentRate, WeightQuantizer, check_precision


class CSQQuantizer(WeightQuantizer):
    """``W = scale * sum_b (f(p_b) - f(q_b)) * 2^b / (2^N - 1) * f(m_b)`` with ``f(x) = sigmoid(T x)``.

    p, q: logits of the bits of both signs; m: one logit for each plane. T grows from 1 to ``final_temperature`` as
    ``final_temperature^(progress / ticket)``; from ``ticket`` on planes are in or out, and the bits go on. Training
    computes with this soft W; what is measured, counted and shipped has bits ``[p > 0]`` and planes ``[m >= 0]``.
    ``harden_`` ends it: then W is exact and only the scale is trained.

    Planes that are left need not be neighbours. Where they are not, a code whose bits have both signs (16 - 2) needs
    further positions to be stored as sign and magnitude (8 + 4 + 2): they are counted, which the paper's bits are not.
    State of one weight: 2 N floats and as many for momentum.

    Args:
        weight: the float tensor to start from. Planes begin with a logit of 0.
        precision: bits N of magnitude at the start.
        logit: the bits of the codes of W begin at plus and minus this; None: at 1 and 0, as in the authors' code. From
            0 a third of the bits never decides itself: on digits (64-48-10, 3 bits, 60 epochs) it ended at 97.6 % soft
            and 38.4 % hard, with logits of 0.3 at 96.2 % both.
        final_temperature: T at ``ticket`` and after.
        ticket: share of the stage after which the choice of planes is final, in (0, 1].

    Raises:
        ValueError: bits outside 1..16, a logit that is not positive, a temperature below 1, a ticket outside (0, 1], or
            a tensor of zeros.

    Example:
        >>> quantizer = CSQQuantizer(torch.tensor([1.0, -0.5, 0.25]), precision=2)
        >>> quantizer.codes(), quantizer.exact
        (tensor([ 3., -2.,  1.]), False)
        >>> quantizer.mask.data = torch.tensor([-1.0, 1.0])  # the low plane goes
        >>> quantizer.codes(), quantizer.precision, quantizer.tensor().codes
        (tensor([ 2., -2.,  0.]), 1, tensor([ 1, -1,  0], dtype=torch.int32))
    """

    own_penalty = "csq_budget"

    def __init__(
        self,
        weight: Tensor,
        precision: int = 8,
        logit: float | None = 0.3,
        final_temperature: float = 200.0,
        ticket: float = 0.99,
    ) -> None:
        super().__init__()
        check_precision("quant.precision", precision)
        if logit is not None and not logit > 0:
            raise ValueError(f"quant.logit is a positive number, or null as in the authors' code, not {logit!r}")
        if not final_temperature >= 1:
            raise ValueError(f"quant.final_temperature must be at least 1, not {final_temperature!r}")
        if not 0 < ticket <= 1:
            raise ValueError(f"quant.ticket is a share of the stage, above 0 and at most 1, not {ticket!r}")
        if not bool(weight.any()):
            raise ValueError(
                "all weights are zero, so there is no scale to start from: give trained weights or skip it"
            )
        weight = weight.detach()
        codes = quantize(weight, max_step(weight, precision), precision)
        self.final_temperature, self.ticket = float(final_temperature), float(ticket)
        self.temperature, self._progress, self.hardened = 1.0, 0.0, False
        bits = split_planes(codes, precision).to(weight.dtype)
        self.planes = nn.Parameter(bits if logit is None else (2 * bits - 1) * logit, requires_grad=False)
        self.mask = nn.Parameter(weight.new_zeros(precision), requires_grad=False)
        self.scale = nn.Parameter(weight.abs().max(), requires_grad=False)

    @property
    def alive(self) -> tuple[int, ...]:
        """Positions of the planes that are in, least significant first (reads the device)."""
        return tuple(b for b, logit in enumerate(self.mask.tolist()) if logit >= 0)

    @property
    def precision(self) -> int:
        """Positions that are stored: of the planes that are in, and of all bits of the codes' magnitudes."""
        return len(self._positions(self.codes()))

    def _positions(self, codes: Tensor) -> tuple[int, ...]:
        whole = codes.abs().to(torch.int32)
        bits = torch.stack([((whole >> b) & 1).any() for b in range(len(self.mask))]).tolist()
        return tuple(sorted({b for b, used in enumerate(bits) if used} | set(self.alive)))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.planes.shape[2:])

    def step(self) -> Tensor:
        """Value of the lowest of the N bits, whichever planes are in."""
        return self.scale.detach() / levels(len(self.mask))

    def codes(self) -> Tensor:
        bits = (self.planes.detach() > 0) & self._per_plane(self.mask.detach() >= 0)
        return merge_planes(bits.to(self.scale.dtype))

    def tensor(self) -> QuantizedTensor:
        """Neighbouring planes as plain codes of so many bits, others with their positions."""
        codes, step = self.codes().to(torch.int32), self.step()
        places = self._positions(codes)
        low = places[0] if places else 0
        if places == tuple(range(low, low + len(places))):
            return QuantizedTensor(codes >> low, step * 2**low, len(places))  # the bits below are zero
        return QuantizedTensor(codes, step, len(places), extra=Planes(places))

    @property
    def exact(self) -> bool:
        return self.hardened

    def _per_plane(self, values: Tensor) -> Tensor:
        return values.view(-1, *[1] * len(self.shape))

    def plane_weights(self) -> Tensor:
        """``f(m)``, ``[N]``; from ``ticket`` on 0 and 1, and no longer differentiable."""
        if self._progress >= self.ticket or self.hardened:
            return (self.mask.detach() >= 0).to(self.mask.dtype)
        return (self.temperature * self.mask).sigmoid()

    def _constants(self) -> Tensor:
        """``2^b / (2^N - 1)``, ``[N]``: no Parameter, so nothing trains or decays it."""
        n = len(self.mask)
        return torch.exp2(torch.arange(n, dtype=self.scale.dtype, device=self.scale.device)) / levels(n)

    @torch.no_grad()
    def training_weight(self, generator: torch.Generator) -> Tensor:
        if self.hardened:
            return self.weight()
        bits = (self.planes * self.temperature).sigmoid_()
        factors = self.scale * self._constants() * self.plane_weights()
        return torch.tensordot(factors, bits[0] - bits[1], dims=1)

    def on_epoch(self, progress: float) -> None:
        self._progress = progress
        self.temperature = self.final_temperature ** min(1.0, progress / self.ticket)

    def latents(self) -> Sequence[nn.Parameter]:
        return (self.scale,) if self.hardened else (self.planes, self.mask, self.scale)

    def latent_rates(self) -> Sequence[LatentRate]:
        """Nothing is decayed: a logit would go to 0, which is undecided."""
        return [LatentRate(weight_decay=0.0)] * len(self.latents())

    @torch.no_grad()
    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        """With ``d_b = 2^b / (2^N - 1) * sum(G (f(p_b) - f(q_b)))``: dL/dm_b = scale d_b f'(m_b), dL/dscale = sum_b d_b
        f(m_b), and for each bit dL/dp_b = scale 2^b / (2^N - 1) f(m_b) f'(p_b) G, that of q_b with the other sign."""
        if self.hardened:
            return ((grad * weight).sum() / self.scale,)
        planes = self.plane_weights()
        bits = (self.planes * self.temperature).sigmoid_()
        each = self._constants() * ((bits[0] - bits[1]) * grad).flatten(1).sum(1)
        slope = self.temperature * planes * (1 - planes)  # zero where planes are in or out
        bits.mul_(1 - bits).mul_(grad).mul_(self._per_plane(self.temperature * self.scale * self._constants() * planes))
        bits[1].neg_()
        return bits, self.scale * each * slope, (each * planes).sum()

    @torch.no_grad()
    def project_(self) -> None:
        """The scale stays positive."""
        self.scale.clamp_(min=1e-8)

    @torch.no_grad()
    def distance(self) -> float:
        """How far the bits of the planes that are in are from 0 and 1: the largest ``min(f, 1 - f)``."""
        alive = self.planes[:, self.mask >= 0]
        return float((-self.temperature * alive.abs()).sigmoid().max()) if alive.numel() else 0.0

    @torch.no_grad()
    def harden_(self) -> None:
        """Bits become what they are nearest to, for good, in sign and magnitude, and planes without a bit go. No hard
        weight moves."""
        codes = self.codes()
        bits = split_planes(codes, len(self.mask)).to(self.planes)
        used = bits.flatten(2).any(2).any(0)
        self.planes.copy_(2 * bits - 1)
        self.mask.copy_(torch.where(used, 1.0, -1.0).to(self.mask))
        self.hardened = True

    def adjust_precision_(self, bits: int | None = None) -> Adjustment:
        """Hardens after the stage's last epoch; before, it only tells how far from hard the bits are.

        Raises:
            ValueError: it cannot be brought to a number of bits.
        """
        super().adjust_precision_(bits)
        if bits is not None:
            return Adjustment()
        distance = self.distance()
        if self._progress >= 1 and not self.hardened:
            self.harden_()
        return Adjustment(audit={"distance_from_hard": distance, "planes": list(self.alive)})

    def get_extra_state(self) -> Any:
        return self.hardened

    def set_extra_state(self, state: Any) -> None:
        self.hardened = bool(state)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        # The checkpoint, not the live tensor, says how many planes there are.
        saved = state_dict.get(prefix + "planes")
        if saved is not None and saved.dim() == self.planes.dim() and saved.shape[2:] == self.planes.shape[2:]:
            self.planes.data = self.planes.new_empty(saved.shape)
            self.mask.data = self.mask.new_empty(saved.shape[1])
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def harden(network: Any) -> None:
    """Hardens every tensor of a ``QuantizedNetwork``: what the stage ``hard`` begins with."""
    for _, _, quantizer in network.quantizers():
        if isinstance(quantizer, CSQQuantizer):
            quantizer.harden_()
    network.write_weights_()
