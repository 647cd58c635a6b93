"""The network in integers alone: what a processor without floats would compute, and how wide its sums become.

Batch norms are folded. A layer multiplies integer weights with the integer codes of its input and adds them up. Its
sums go onto one grid of ``2^-fraction_bits`` by a fixed-point multiplication, an integer of up to 31 bits and a shift
for each channel, half to even; biases, residual sums and ReLU live on that grid. The next activation site multiplies
once more, which gives its codes. Numbers are kept in float64 and int64, which hold all of these integers exactly.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from bsq_lightning.exporters.agreement import Agreement, compare, top1_agreement
from bsq_lightning.exporters.folding import fold_batch_norm
from bsq_lightning.exporters.forms import plain_forms
from bsq_lightning.exporters.pair import check_ranges, simulated
from bsq_lightning.ops.batch_norm import LAYERS, computes_as, traced
from bsq_lightning.quantized_tensor import QuantizedState

EXACT = 53  # bits up to which float64 holds every integer
SAME = (nn.Identity, nn.Dropout, nn.Flatten, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
# Functions and methods that only move or compare numbers.
MOVES = {operator.getitem, torch.flatten, torch.reshape, torch.permute, torch.transpose, F.max_pool2d, F.pad}
MOVING = {"flatten", "view", "reshape", "permute", "transpose", "contiguous", "squeeze", "unsqueeze"}


@dataclass(frozen=True)
class Accumulator:
    """Sums of one layer.

    Args:
        layer: its name.
        bits: with sign, for the worst input that its codes allow; for an input on the grid, for the largest seen.
        seen: with sign, of the largest sum over the inputs.
        reads: ``codes``, or ``grid`` where the input is not quantized.
    """

    layer: str
    bits: int
    seen: int
    reads: str


@dataclass(frozen=True)
class IntegerRun:
    """What an integer-only evaluation found.

    Args:
        agreement: with the float simulation of the folded network, code for code.
        accumulators: of every layer.
        float_layers: names of what was computed in floats, because it is not quantized.
        fraction_bits: of the grid.
        top1: share of inputs with the same largest logit as the network that was given, not folded.
        logits: ``[N, classes]``.
    """

    agreement: Agreement
    accumulators: tuple[Accumulator, ...]
    float_layers: tuple[str, ...]
    fraction_bits: int
    top1: float
    logits: Tensor

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for a card."""
        return {
            **self.agreement.as_dict(),
            "requantization": f"fixed point, to a grid of 2^-{self.fraction_bits}",
            "accumulator_bits": {each.layer: each.bits for each in self.accumulators},
            "wider_than_32_bits": [each.layer for each in self.accumulators if each.bits > 32],
            "float_layers": list(self.float_layers),
            "top1_to_the_network": self.top1,
        }


@torch.no_grad()
def run_in_integers(net: nn.Module, state: QuantizedState, inputs: Tensor, fraction_bits: int = 20) -> IntegerRun:
    """Evaluates a network in integers and compares it with the float simulation.

    Args:
        net: plain network.
        state: its quantized tensors and activations, ranges fixed.
        inputs: ``[N, ...]``, taken to the grid.
        fraction_bits: of the grid; values up to ``2^(31 - fraction_bits)`` fit in its 32 bits.

    Returns:
        Where codes agree, and the width of every sum.

    Raises:
        ValueError: ranges that are not fixed, a network that cannot be traced, or an operation without an integer
            form; the message names it.
        OverflowError: a sum or a value that does not fit; the message names the layer.
    """
    check_ranges(state, "integer-only evaluation")
    folded, folded_state = fold_batch_norm(net, state)
    interpreter = _Integers(folded, folded_state, fraction_bits)
    result = interpreter.run(inputs)
    logits = result.codes * result.step if isinstance(result, _Value) else result
    agreement = compare(folded, folded_state, inputs, interpreter.codes, logits.float())
    top1 = top1_agreement(logits, simulated(net, state)(inputs))
    return IntegerRun(
        agreement, tuple(interpreter.accumulators), tuple(interpreter.floats), fraction_bits, top1, logits
    )


@dataclass(frozen=True)
class _Value:
    """``codes * step``; codes are integers in float64, ``largest`` bounds them, None if only what is seen does."""

    codes: Tensor
    step: float
    largest: int | None = None


class _Integers(fx.Interpreter):
    def __init__(self, net: nn.Module, state: QuantizedState, fraction_bits: int) -> None:
        super().__init__(traced(net, inside=True))
        self.extra_traceback = False  # a user's network is refused by name; where fx was then tells nothing more
        self.grid = 2.0**-fraction_bits
        self.forms, _ = plain_forms(state)
        self.forms |= {name: self.forms[owner] for name, owner in state.owners.items() if owner in self.forms}
        self.sites = {(site.site, site.at): site for site in state.activations}
        self.codes: dict[str, list[Tensor]] = {}
        self.accumulators: list[Accumulator] = []
        self.floats: list[str] = []
        called = {node.target for node in self.module.graph.nodes if node.op == "call_module"}  # type: ignore[union-attr]
        if outside := [site for site, _ in self.sites if site not in called]:
            raise ValueError(f"activations at {', '.join(outside)} are inside or outside of what the tracer sees")

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        x = super().placeholder(target, args, kwargs)
        return _Value((x.double() / self.grid).round(), self.grid) if isinstance(x, Tensor) else x

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module, name = self.fetch_attr(target), str(target)
        x = self._round(name, "input", args[0])
        if not isinstance(x, _Value):
            raise ValueError(
                f"{name} reads no activations of the input: {type(module).__name__} has no integer form then"
            )
        if computes_as(module, LAYERS):
            result = self._layer(name, module, x)
        elif isinstance(module, nn.ReLU):
            result = _Value(x.codes.clamp_min(0), x.step, x.largest)
        elif isinstance(module, nn.Hardtanh):  # ReLU6 among them
            x = self._on_grid(x, name)
            low, high = (round(limit / self.grid) for limit in (module.min_val, module.max_val))
            result = _Value(x.codes.clamp(low, high), x.step)
        elif isinstance(module, SAME):
            result = _Value(module(x.codes), x.step, x.largest)
        elif isinstance(module, nn.AdaptiveAvgPool2d) and module.output_size in (1, (1, 1)):
            result = _mean(x, (2, 3), keepdim=True)
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)):
            result = self._in_floats(name, module, x)
        else:
            raise ValueError(f"{name}: {type(module).__name__} has no integer form here")
        return self._round(name, "output", result)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if not any(isinstance(each, _Value) for each in pytree.tree_leaves((args, kwargs))):
            return super().call_function(target, args, kwargs)
        x = args[0] if args else None
        if not isinstance(x, _Value):
            raise ValueError(f"{getattr(target, '__name__', target)} has no integer form here")
        if target in MOVES:
            return _Value(target(x.codes, *args[1:], **kwargs), x.step, x.largest)
        if target in (operator.add, operator.iadd, torch.add) and all(isinstance(each, _Value) for each in args):
            one, other = (self._on_grid(each, "a sum") for each in args)
            return self._checked(_Value(one.codes + other.codes, self.grid), "a sum")
        if target in (F.relu, torch.relu):
            return _Value(x.codes.clamp_min(0), x.step, x.largest)
        if target is torch.mean:
            return _mean(x, *args[1:], **kwargs)
        if target is F.adaptive_avg_pool2d and args[1] in (1, (1, 1)):
            return _mean(x, (2, 3), keepdim=True)
        if target is getattr:
            return getattr(x.codes, args[1])
        raise ValueError(f"{getattr(target, '__name__', target)} has no integer form here")

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        x = args[0]
        if not isinstance(x, _Value):
            return super().call_method(target, args, kwargs)
        if target in MOVING:
            return _Value(getattr(x.codes, target)(*args[1:], **kwargs), x.step, x.largest)
        if target == "size":
            return x.codes.size(*args[1:])
        if target == "mean":
            return _mean(x, *args[1:], **kwargs)
        if target in ("relu", "relu_"):
            return _Value(x.codes.clamp_min(0), x.step, x.largest)
        raise ValueError(f"{target} has no integer form here")

    def _layer(self, name: str, module: Any, x: _Value) -> _Value:
        form = self.forms.get(name)
        if form is None:
            return self._in_floats(name, module, x)
        weight = form.codes.double()
        multiply: Callable[[Tensor, Tensor], Tensor] = (
            F.linear if isinstance(module, nn.Linear) else lambda a, w: module._conv_forward(a, w, None)
        )
        inputs = x.largest if x.largest is not None else int(x.codes.abs().max())
        worst = int(weight.abs().flatten(1).sum(1).max()) * inputs
        if _bits(worst) > EXACT:
            raise OverflowError(f"{name}: sums of {_bits(worst)} bits; {EXACT} can be computed here")
        sums = multiply(x.codes, weight)
        reads = "codes" if x.largest is not None else "grid"
        self.accumulators.append(Accumulator(name, _bits(worst), _bits(int(sums.abs().max())), reads))
        channel = -1 if isinstance(module, nn.Linear) else 1
        ratio = form.step.double().flatten().expand(len(weight)) * (x.step / self.grid)
        values = rescale(sums.movedim(channel, -1), ratio)
        if module.bias is not None:
            values = values + (module.bias.double() / self.grid).round()
        return self._checked(_Value(values.movedim(-1, channel), self.grid), name)

    def _in_floats(self, name: str, module: nn.Module, x: _Value) -> _Value:
        self.floats.append(name)
        result = module.double()(x.codes * x.step)
        module.float()
        return self._checked(_Value((result / self.grid).round(), self.grid), name)

    def _round(self, name: str, at: str, x: Any) -> Any:
        site = self.sites.get((name, at))
        if site is None or not isinstance(x, _Value):
            return x
        levels = 2**site.bits - 1
        step = float(torch.tensor(site.range) / levels)
        top = levels if site.clip is None else min(levels, round(site.clip / step))
        codes = rescale(x.codes, torch.tensor(x.step / step, dtype=torch.float64)).clamp(-top, top)
        self.codes.setdefault(name, []).append(codes)
        return _Value(codes, step, top)

    def _on_grid(self, x: _Value, name: str) -> _Value:
        ratio = torch.tensor(x.step / self.grid, dtype=torch.float64)
        return x if x.step == self.grid else self._checked(_Value(rescale(x.codes, ratio), self.grid), name)

    def _checked(self, x: _Value, name: str) -> _Value:
        if (largest := float(x.codes.abs().max())) >= 2**31:
            raise OverflowError(
                f"{name}: a value of {largest * self.grid:.4g} does not fit in 32 bits on a grid of {self.grid:.3g}: "
                "give fewer fraction_bits"
            )
        return x


def rescale(codes: Tensor, ratio: Tensor) -> Tensor:
    """``codes * ratio``, rounded half to even, by an integer multiplication and a shift.

    Args:
        codes: integers in float64, ``[..., K]``.
        ratio: positive or zero, float64, 0-d or ``[K]``; taken to as many bits, 31 at most, as 64-bit products allow.

    Returns:
        Integers in float64.

    Example:
        >>> rescale(torch.tensor([3.0, 5.0, -7.0]), torch.tensor(0.5, dtype=torch.float64))
        tensor([ 2.,  2., -4.], dtype=torch.float64)
    """
    width = min(31, 62 - _bits(int(codes.abs().max()) if codes.numel() else 0))
    _, exponent = torch.frexp(ratio)
    shift = (width - exponent).clamp(1, 62).to(torch.int64)
    factor = torch.ldexp(ratio, shift.double()).round().to(torch.int64)
    product = codes.to(torch.int64) * factor
    below = product & ((1 << shift) - 1)
    half = 1 << (shift - 1)
    floor = product >> shift
    return (floor + ((below > half) | ((below == half) & (floor % 2 == 1))).to(torch.int64)).double()


def _mean(x: _Value, dim: Any = None, keepdim: bool = False) -> _Value:
    """The sum, and a step that many times smaller: nothing is rounded."""
    dims = list(range(x.codes.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    count = math.prod(x.codes.shape[each] for each in dims)
    largest = None if x.largest is None else x.largest * count
    return _Value(x.codes.sum(dims, keepdim=keepdim), x.step / count, largest)


def _bits(largest: int) -> int:
    """Of a signed integer that holds ``+-largest``."""
    return max(1, largest).bit_length() + 1
