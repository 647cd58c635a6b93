"""CPQ with DropBits: a categorical distribution over a learned grid, its mode in front (arXiv 2109.02100, ICCV 2021).

The paper's method section was not read. The distribution is that of relaxed quantization (arXiv 1911.12990), as it is
remembered; which of the two backward passes is the paper's is unverified, and DropBits' nested masks are derived from
the abstract's words. Measured at toy scale: ``argmax`` gives weights of the zero bin no gradient for ever.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.ops.uniform import levels, quantize
from bsq_lightning.quantizers.base import Adjustment, LatentRate, WeightQuantizer, check_precision

BACKWARDS = ("full", "argmax")
#: The hard concrete distribution with the values of the L0 paper (arXiv 1712.01312); those of CPQ are unverified.
LOW, HIGH, HEAT = -0.1, 1.1, 2 / 3
OWN = LatentRate(lr_factor=0.01, weight_decay=0.0)
SHARPEST = math.log(100.0)


class CPQQuantizer(WeightQuantizer):
    """``W = a * argmax_k pi_k(x)`` over ``k = -(2^n - 1)..2^n - 1`` with a logistic bin for each k, scaled to sum to 1:
    ``pi_k(x) ~ sigmoid((a k + a/2 - x) / s) - sigmoid((a k - a/2 - x) / s)``. Bins are equally wide, so the mode is the
    nearest level: ``W = a * clip(round(x / a), +-(2^n - 1))``.

    Backward, the one-hot mode passes its gradient to pi: ``full`` to all k, so that dL/dx = G dE[a k]/dx, a staircase
    that is flat at levels and steep between them where a / s is large; ``argmax`` to the mode alone. The step a learns
    through the levels and through pi, s through pi; both as logarithms, at 0.01 of the rate, without decay. pi is
    computed on ``2 window + 1`` levels around x, one after the other: a few temporaries of the size of W.

    DropBits: bit j of 2..n carries the levels ``2^(j-1) <= |k| < 2^j``, and is there with ``Z_j``, one number for the
    layer and step from a hard concrete distribution: ``pi_k`` times ``Z_2 .. Z_j(k)``, so a bit is there only with all
    lower ones. What is measured has the bits up to the first whose Z without noise is 0.

    Args:
        weight: tensor to start from; a begins at ``2 mean|W| / sqrt(2^n - 1)``.
        precision: bits of magnitude n at the start (the paper's b bits, sign inside, are n = b - 1).
        backward: ``full`` or ``argmax``.
        sigma_ratio: a / s at the start, at least 1 (the paper's, as remembered, is 3, at which nothing clusters).
        learn_sigma: whether s is trained; else a / s stays.
        window: levels on either side of the nearest that pi is computed on.
        dropbits: whether bits are dropped in training, until ``freeze_``.
        learn_bits: whether the probabilities of the bits are trained; else each is ``keep``.
        keep: probability of every bit at the start, ``sigmoid`` of its logit.

    Raises:
        ValueError: precision outside 1..16, an unknown backward pass, a ratio, window or probability out of range, or a
            tensor of zeros.

    Example:
        >>> quantizer = CPQQuantizer(torch.tensor([0.9, -0.4, 0.1, -0.2]), precision=2)
        >>> quantizer.codes(), quantizer.exact
        (tensor([ 2., -1.,  0., -0.]), True)
    """

    own_penalty = "dropbits_l0"

    def __init__(
        self,
        weight: Tensor,
        precision: int = 3,
        backward: str = "full",
        sigma_ratio: float = 8.0,
        learn_sigma: bool = True,
        window: int = 2,
        dropbits: bool = False,
        learn_bits: bool = True,
        keep: float = 0.9,
    ) -> None:
        super().__init__()
        check_precision("quant.precision", precision)
        if backward not in BACKWARDS:
            raise ValueError(f"quant.backward is one of {', '.join(BACKWARDS)}, not {backward!r}")
        if not 1 <= sigma_ratio <= math.exp(SHARPEST):
            raise ValueError(f"quant.sigma_ratio is a number from 1 to 100, not {sigma_ratio!r}")
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"quant.window is a number of levels, at least 1, not {window!r}")
        if not 0 < keep < 1:
            raise ValueError(f"quant.keep is a probability between 0 and 1, not {keep!r}")
        if not bool(weight.any()):
            raise ValueError("all weights are zero, so there is no step to start from: give trained weights or skip it")
        weight = weight.detach()
        self.backward, self.window, self.learn_sigma, self.learn_bits = backward, window, learn_sigma, learn_bits
        self.most, self.frozen, self._drawn = precision, not dropbits, None
        self._log_ratio = math.log(sigma_ratio)
        size = (2 * weight.abs().mean() / levels(precision) ** 0.5).log()
        self.latent = nn.Parameter(weight.clone(), requires_grad=False)
        self.log_step = nn.Parameter(size, requires_grad=False)
        self.log_sigma = nn.Parameter(size - self._log_ratio, requires_grad=False)
        self.logits = nn.Parameter(weight.new_full((precision - 1,), math.log(keep / (1 - keep))), requires_grad=False)

    @property
    def drops(self) -> bool:
        """Whether bits are dropped in training now."""
        return not self.frozen and self.most > 1

    @property
    def precision(self) -> int:
        """Bits up to the first whose Z without noise is 0 (reads the device)."""
        if not self.drops:
            return self.most
        there = (_stretch(self.logits[: self.most - 1].sigmoid()) > 0).tolist()
        return 1 + (there.index(False) if False in there else len(there))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.latent.shape)

    def step(self) -> Tensor:
        return self.log_step.detach().exp()

    def codes(self) -> Tensor:
        return quantize(self.latent.detach(), self.step(), self.precision)

    @torch.no_grad()
    def hold_codes_(self, where: Tensor, codes: Tensor) -> None:
        if self.drops:
            raise ValueError("CPQ's codes are of another grid at every step while it drops bits")
        self.latent.copy_(torch.where(where, codes * self.step(), self.latent))

    def relaxed(self) -> Tensor | None:
        return None if self.drops else self.latent.detach()

    @property
    def exact(self) -> bool:
        return not self.drops

    @torch.no_grad()
    def training_weight(self, generator: torch.Generator) -> Tensor:
        """The mode under one draw of the bits; ``latent_gradients`` then speaks of this draw."""
        if not self.drops:
            return self.weight()
        noise = torch.rand(self.most - 1, generator=generator, dtype=torch.float64).clamp_(1e-6, 1 - 1e-6)
        noise = (noise.log() - (1 - noise).log()).to(self.latent)
        self._drawn = ((noise + self.logits[: self.most - 1]) / HEAT).sigmoid()
        return self._mode(self.latent / self.step(), self._keeps()) * self.step()

    def _keeps(self) -> Tensor | None:
        """``Z_2 .. Z_j`` of the draw for every bit j of 0..most, ``[most + 1]``; None where nothing is dropped."""
        if not self.drops or self._drawn is None:
            return None
        there = _stretch(self._drawn)
        return torch.cat((there.new_ones(2), there.cumprod(0)))

    def latents(self) -> Sequence[nn.Parameter]:
        sigma = (self.log_sigma,) if self.learn_sigma else ()
        bits = (self.logits,) if not self.frozen and self.learn_bits else ()  # as many after a resume as before
        return self.latent, self.log_step, *sigma, *bits

    def latent_rates(self) -> Sequence[LatentRate]:
        own = {id(self.latent): LatentRate(), id(self.logits): LatentRate(weight_decay=0.0)}
        return [own.get(id(latent), OWN) for latent in self.latents()]

    @torch.no_grad()
    def latent_gradients(self, weight: Tensor, grad: Tensor) -> Sequence[Tensor]:
        """With u = x / a, r = a / s and A(u, r) = sum_k w_k pi_k, w_k = k (``full``) or k of the mode alone:
        dL/dx = G dA/du, dL/dlog a = sum a G (k_mode - u dA/du + r dA/dr), dL/dlog s = -sum a G r dA/dr."""
        step, keeps = self.step(), self._keeps()
        scaled, ratio = self.latent / step, (self.log_step - self.log_sigma).exp()
        mode = (weight / step).round()
        whole, mean, by_place, by_ratio = (torch.zeros_like(scaled) for _ in range(4))
        place, spread = torch.zeros_like(scaled), torch.zeros_like(scaled)
        for k, keep, near, far in self._bins(scaled, keeps):
            value, p, distance = self._value(k, mode), near - far, (k - scaled).abs()
            near, far = near * (1 - near), far * (1 - far)
            du, dr = ratio * torch.sign(k - scaled) * (near - far), (distance + 0.5) * far - (distance - 0.5) * near
            whole.addcmul_(p, keep)
            mean.addcmul_(p * keep, value)
            for sums, products, slope in ((by_place, place, du), (by_ratio, spread, dr)):
                sums.addcmul_(slope, keep)
                products.addcmul_(slope * keep, value)
        whole.clamp_min_(torch.finfo(whole.dtype).tiny)
        mean /= whole
        place.sub_(mean * by_place).div_(whole)
        spread.sub_(mean * by_ratio).div_(whole).mul_(ratio)
        pulled = grad * step
        if not self.learn_sigma:  # a / s stays, so the step moves both
            log_step = (pulled * (mode - scaled * place)).sum()
            return grad * place, log_step, *self._logit_gradient(pulled, scaled, keeps, mode, mean, whole)
        log_step = (pulled * (mode - scaled * place + spread)).sum()
        bits = self._logit_gradient(pulled, scaled, keeps, mode, mean, whole)
        return grad * place, log_step, -(pulled * spread).sum(), *bits

    def _logit_gradient(
        self, pulled: Tensor, scaled: Tensor, keeps: Tensor | None, mode: Tensor, mean: Tensor, whole: Tensor
    ) -> tuple[Tensor, ...]:
        """dL/dlogit_j = sum over bits i >= j of (dL/d(Z_2 .. Z_i)) * Z_2 .. Z_i without Z_j, through the stretched
        sigmoid."""
        if self.frozen or not self.learn_bits:
            return ()
        gradient = torch.zeros_like(self.logits)
        if keeps is None or self._drawn is None:
            return (gradient,)
        each = torch.zeros_like(keeps)
        pulled = pulled / whole
        for k, _, near, far in self._bins(scaled, keeps):
            share = (pulled * (self._value(k, mode) - mean)).mul_(near - far)
            bits = _bit_of(k)
            for bit in range(2, self.most + 1):
                each[bit] += (share * (bits == bit)).sum()
        there = _stretch(self._drawn)
        for j in range(len(there)):
            others = torch.cat((there[:j], there.new_ones(1), there[j + 1 :])).cumprod(0)
            gradient[j] = (each[2 + j :] * others[j:]).sum()
        inside = ((there > 0) & (there < 1)).to(gradient.dtype)
        slope = (HIGH - LOW) * self._drawn * (1 - self._drawn) / HEAT * inside
        gradient[: len(there)] *= slope
        return (gradient,)

    def _value(self, k: Tensor, mode: Tensor) -> Tensor:
        """What the gradient of pi_k is, in units of the step."""
        return k if self.backward == "full" else k * (k == mode)

    def _limit(self, keeps: Tensor | None, like: Tensor) -> Tensor:
        """The largest level that is there: of all bits, or of those whose product of Z is not 0."""
        bits = like.new_tensor(float(self.most)) if keeps is None else (keeps > 0).sum().to(like.dtype) - 1
        return bits.exp2() - 1

    def _levels(self, scaled: Tensor, keeps: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        """Level by level of the window: k, and how much of it is there (0 beyond the grid)."""
        limit = self._limit(keeps, scaled)
        nearest = torch.minimum(torch.maximum(scaled.round(), -limit), limit)
        for offset in range(-self.window, self.window + 1):
            k = nearest + offset
            keep = (k.abs() <= limit).to(k.dtype)
            yield k, keep if keeps is None else keep * keeps[_bit_of(k).clamp_max(self.most)]

    def _bins(self, scaled: Tensor, keeps: Tensor | None) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
        """The levels k with how much of them is there, and ``sigmoid(-r (d - 1/2))`` and ``sigmoid(-r (d + 1/2))``, d =
        |k - u|: their difference is pi before scaling, and nothing cancels however far away the level is."""
        ratio = (self.log_step - self.log_sigma).exp()
        for k, keep in self._levels(scaled, keeps):
            distance = (k - scaled).abs()
            yield k, keep, ((0.5 - distance) * ratio).sigmoid(), ((distance + 0.5) * -ratio).sigmoid()

    def _mode(self, scaled: Tensor, keeps: Tensor | None) -> Tensor:
        """The level of the largest pi, after the bits that were dropped."""
        if keeps is None:
            limit = self._limit(None, scaled)
            return torch.minimum(torch.maximum(scaled.round(), -limit), limit)
        best, mode = torch.full_like(scaled, -1.0), torch.zeros_like(scaled)
        for k, keep, near, far in self._bins(scaled, keeps):
            p = (near - far) * keep
            mode = torch.where(p > best, k, mode)
            best = torch.maximum(best, p)
        return mode

    @torch.no_grad()
    def project_(self) -> None:
        """a at least 1e-8, a / s from 1 to 100, logits of bits in [-8, 8]."""
        self.log_step.clamp_(min=math.log(1e-8))
        low, high = (0.0, SHARPEST) if self.learn_sigma else (self._log_ratio, self._log_ratio)
        self.log_sigma.copy_(torch.minimum(torch.maximum(self.log_sigma, self.log_step - high), self.log_step - low))
        self.logits.clamp_(-8, 8)

    @torch.no_grad()
    def clustering(self) -> float:
        """Mean ``|x - W| / a`` of the weights within the grid: 0.25 if they lie anywhere, less where they cluster."""
        scaled = self.latent / self.step()
        inside = scaled.abs() <= levels(self.precision) + 0.5
        return float((scaled - self.codes()).abs()[inside].mean()) if bool(inside.any()) else 0.0

    def freeze_(self) -> None:
        """The bits that are there now stay, and no others; nothing is dropped any more."""
        self.most, self.frozen, self._drawn = self.precision, True, None

    @torch.no_grad()
    def adjust_precision_(self, bits: int | None = None) -> Adjustment:
        """Bits that are gone stay away; no weight moves. Or goes to ``bits``.

        Raises:
            ValueError: more bits than there are, or none.
        """
        if bits is None:
            chances = [round(float(chance), 4) for chance in self.logits.sigmoid()]
            audit = {"clustering": round(self.clustering(), 4), "chance_of_bits": chances}
            self.most, self._drawn = self.precision, None
            return Adjustment(audit=audit)
        if check_precision("bits", bits) > self.most:
            raise ValueError(f"{self.most} bits cannot be brought to {bits}")
        self.most, self._drawn = bits, None
        self.logits[: bits - 1].clamp_(min=0)
        return Adjustment(f"brought to {bits} bits")

    def get_extra_state(self) -> Any:
        return [self.most, self.frozen]

    def set_extra_state(self, state: Any) -> None:
        self.most, self.frozen = check_precision("precision in the checkpoint", state[0]), bool(state[1])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:  # type: ignore[override]
        saved = state_dict.get(prefix + "logits")
        if saved is not None and saved.dim() == 1:
            self.logits.data = self.logits.new_empty(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def _stretch(chance: Tensor) -> Tensor:
    """From (0, 1) to [0, 1] with both ends included."""
    return (chance * (HIGH - LOW) + LOW).clamp(0, 1)


def _bit_of(k: Tensor) -> Tensor:
    """The bit that a level needs: 0 for 0, j for ``2^(j-1) <= |k| < 2^j``."""
    return torch.frexp(k)[1].clamp_min(0)


def freeze(network: Any) -> None:
    """Freezes the bits of every tensor of a ``QuantizedNetwork``: what the stage ``fixed`` begins with."""
    for _, _, quantizer in network.quantizers():
        if isinstance(quantizer, CPQQuantizer):
            quantizer.freeze_()
    network.write_weights_()
