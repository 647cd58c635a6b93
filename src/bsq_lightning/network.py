"""A plain network with quantizers beside it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bsq_lightning.ops.evaluating import evaluating
from bsq_lightning.ops.input_bits import bits_of_inputs
from bsq_lightning.ops.macs import count_macs
from bsq_lightning.quantized_tensor import QuantizedActivation, QuantizedState
from bsq_lightning.quantizers import ActivationQuantizer, Adjustment, WeightQuantizer
from bsq_lightning.quantizers.base import check_precision
from bsq_lightning.scheme import Scheme

QUANTIZED_TYPES = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class QuantizedNetwork(nn.Module):
    """Pairs every quantized parameter of ``net`` with its quantizer; ``net`` itself stays an ordinary float network.

    The quantized parameters of ``net`` hold ``codes * step``, so forward, backward, autocast and DDP are those of a
    float network, and the part of the state dict under ``net.`` loads into the plain architecture: as the network
    with quantized weights and float activations, without the clips that quantized ones were trained with, which can
    cost all of its accuracy. (A method that trains with other weights than it will ship has them there between
    ``write_training_weights_`` and ``write_weights_``; never in a state dict.) Activation quantizers are hooked in,
    with their state kept here: behind every ``nn.ReLU`` where the network has one module
    for each use (it then says ``relu_per_use = True``), else at the input of every quantized layer but the first.

    Args:
        net: any network.
        weight: called as ``weight(tensor, precision=bits)`` for each quantized tensor; None leaves weights float.
        activation: called as ``activation(precision=act_precision)`` for each quantized activation.
        precision: bits at the start, for tensors that ``precisions`` does not name.
        precisions: bits by tensor name (a scheme); then it must name exactly the quantized tensors.
        first_last_precision: bits of the first and the last quantized layer, if they differ.
        act_precision: bits of activations; 0 leaves them float.
        skip: name patterns of layers that stay float.
        float_activations: name patterns of activations that stay float.
        quantized_biases: name patterns of layers whose bias is quantized too (none by default).

    Raises:
        ValueError: a pattern or a name that matches nothing, a tensor that no quantizer takes, or weight_norm and
            other parametrizations, under which the network would not compute with the quantized tensor.

    Example:
        >>> from functools import partial
        >>> from bsq_lightning.quantizers import BitPlaneQuantizer
        >>> net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> QuantizedNetwork(net, BitPlaneQuantizer, precision=3).scheme().precisions()
        {'0': 3, '2': 3}
    """

    def __init__(
        self,
        net: nn.Module,
        weight: Callable[..., WeightQuantizer] | None = None,
        activation: Callable[..., ActivationQuantizer] | None = None,
        *,
        precision: int = 8,
        precisions: Mapping[str, int] | None = None,
        first_last_precision: int | None = None,
        act_precision: int = 0,
        skip: Sequence[str] = (),
        float_activations: Sequence[str] = (),
        quantized_biases: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.net = net
        self.skipped: dict[str, str] = {}
        self.owners: dict[str, str] = {}
        self.macs: dict[str, int] = {}
        self.input_bits: dict[str, int] = {}
        self.at_inputs = not getattr(net, "relu_per_use", False)
        self._holds_training_weights = False
        self.register_state_dict_pre_hook(lambda module, prefix, keep_vars: module.hold_weights_())
        self.weight_quantizers = nn.ModuleDict()
        self.activation_quantizers = nn.ModuleDict()
        self.act_precision = act_precision if weight is not None and activation is not None else 0
        if weight is None:
            return
        check_precision("quant.precision", precision)
        if first_last_precision is not None:
            check_precision("quant.first_last_precision", first_last_precision)
        tensors = self._choose(skip, quantized_biases)
        bits = dict.fromkeys(tensors, precision)
        if first_last_precision is not None and tensors:
            bits[next(iter(tensors))] = bits[[name for name in tensors if not name.endswith(".bias")][-1]] = (
                first_last_precision
            )
        if precisions is not None:
            _same_names(precisions, tensors)
            bits = dict(precisions)
        for name, tensor in tensors.items():
            try:
                if bits[name] and not bool(tensor.any()):
                    raise ValueError(
                        "all weights are zero, so there is no step to choose: give trained weights or skip it"
                    )
                self.weight_quantizers[_key(name)] = weight(tensor, precision=bits[name])
            except ValueError as error:
                raise ValueError(f"layer {name}: {error}") from error
        if self.act_precision and activation is not None:
            self._hook_activations(activation, float_activations)
        self.write_weights_()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def _choose(self, skip: Sequence[str], biases: Sequence[str]) -> dict[str, nn.Parameter]:
        tensors: dict[str, nn.Parameter] = {}
        owners: dict[int, str] = {}
        layers = {name: m for name, m in self.net.named_modules() if isinstance(m, QUANTIZED_TYPES)}
        _all_match("quant.skip", skip, layers)
        _all_match("quantized_biases", biases, [n for n, m in layers.items() if m.bias is not None])
        for name, module in self.net.named_modules():
            own = dict(module.named_parameters(recurse=False))
            if name in layers:
                if parametrize.is_parametrized(module) or not isinstance(
                    module._parameters.get("weight"), nn.Parameter
                ):
                    raise ValueError(
                        f"layer {name} has a parametrized weight (weight_norm or the like), which is recomputed at "
                        f"every forward and would undo the quantization: remove it first, or put {name!r} in quant.skip"
                    )
                if any(fnmatchcase(name, pattern) for pattern in skip):
                    self.skipped[name] = "quant.skip"
                elif id(own["weight"]) in owners:
                    self.owners[name] = owners[id(own["weight"])]
                    self.skipped[name] = f"shares its weight with {owners[id(own['weight'])]}, which is quantized once"
                else:
                    owners[id(own["weight"])] = name
                    tensors[name] = own["weight"]
                    if any(fnmatchcase(name, pattern) for pattern in biases):
                        tensors[f"{name}.bias"] = own["bias"]
            for key, parameter in own.items():
                if name not in layers and parameter.dim() > 1:
                    place = f"{name}.{key}".lstrip(".")
                    self.skipped[place] = f"{type(module).__name__} is not a convolution or linear layer"
        if not tensors:
            raise ValueError(f"{type(self.net).__name__} has no convolution or linear layer left to quantize")
        return tensors

    def _hook_activations(self, build: Callable[..., ActivationQuantizer], stay_float: Sequence[str]) -> None:
        if self.at_inputs:
            layers = [name for name, module in self.net.named_modules() if isinstance(module, QUANTIZED_TYPES)]
            sites = [name for name in layers[1:] if name in self.names()]  # the first layer takes the image
            attention = {id(m.out_proj) for m in self.net.modules() if isinstance(m, nn.MultiheadAttention)}
            for name in [each for each in sites if id(self.net.get_submodule(each)) in attention]:
                sites.remove(name)  # never called: its forward takes the weight alone, and no hook sees what it reads
                self.skipped[f"input of {name}"] = "torch.nn.MultiheadAttention does not call its projection"
        else:
            sites = [name for name, module in self.net.named_modules() if isinstance(module, nn.ReLU)]
        _all_match("quant.float_activations", stay_float, sites)
        for name in sites:
            if any(fnmatchcase(name, pattern) for pattern in stay_float):
                continue
            quantizer = self.activation_quantizers[_key(name)] = build(precision=self.act_precision)
            module = self.net.get_submodule(name)
            # Bound methods, not closures: a deep copy of the network then calls the copy's quantizers.
            if self.at_inputs:
                module.register_forward_pre_hook(quantizer.before_layer)
            else:
                module.register_forward_hook(quantizer.after_layer)

    def names(self) -> list[str]:
        """Names of the quantized tensors, in the order of the network."""
        return [key.replace("/", ".") for key in self.weight_quantizers]

    def quantizers(self) -> Iterator[tuple[str, nn.Parameter, WeightQuantizer]]:
        """Every quantized tensor: its name, the Parameter of ``net``, its quantizer."""
        for key, quantizer in self.weight_quantizers.items():
            name = key.replace("/", ".")
            parameter = self.net.get_parameter(name if name.endswith(".bias") else f"{name}.weight")
            yield name, parameter, quantizer  # type: ignore[misc]

    def quantizer(self, name: str) -> WeightQuantizer:
        """The quantizer of the tensor called ``name``."""
        return self.weight_quantizers[_key(name)]  # type: ignore[return-value]

    @torch.no_grad()
    def write_weights_(self) -> None:
        """``W <- codes * step`` in place, for every quantized tensor: what is measured, saved and shipped."""
        for _, parameter, quantizer in self.quantizers():
            parameter.copy_(quantizer.weight())
        self._holds_training_weights = False

    @torch.no_grad()
    def write_training_weights_(self, generator: torch.Generator) -> None:
        """Before a training step, for the methods that train with other weights than ``codes * step``.

        Args:
            generator: for those that draw them; in the same state on all ranks.
        """
        for _, parameter, quantizer in self.quantizers():
            if not quantizer.exact:
                parameter.copy_(quantizer.training_weight(generator))
                self._holds_training_weights = True

    def hold_weights_(self) -> None:
        """``write_weights_``, where training weights are held now."""
        if self._holds_training_weights:
            self.write_weights_()

    @property
    def exact(self) -> bool:
        """Whether training computes with the weights that will be shipped."""
        return all(quantizer.exact for _, _, quantizer in self.quantizers())

    @property
    def scheduled(self) -> bool:
        """Whether some quantizer changes from epoch to epoch (``on_epoch``)."""
        return any(_follows_epochs(quantizer) for _, _, quantizer in self.quantizers())

    @torch.no_grad()
    def on_epoch(self, progress: float) -> None:
        """Tells every quantizer how far the stage is, from 0 at its first epoch to 1 at its last."""
        for _, parameter, quantizer in self.quantizers():
            if _follows_epochs(quantizer):
                quantizer.on_epoch(progress)
                parameter.copy_(quantizer.weight())

    @torch.no_grad()
    def check_weights(self) -> None:
        """Raises RuntimeError, naming the tensor, where a weight is not its quantizer's ``codes * step``."""
        self.hold_weights_()
        for name, parameter, quantizer in self.quantizers():
            weight = quantizer.weight()
            # NaN equals nothing, itself included; a NaN is reported as what it is, at its first step, by the module.
            if not torch.equal(parameter, weight) and bool(torch.isfinite(weight).all()):
                worst = float((parameter - weight).abs().max())
                raise RuntimeError(
                    f"the weights of {name} are not what its quantizer holds (they differ by up to {worst:.3g}): "
                    "something else wrote to them, such as an averaging or pruning callback"
                )

    def drop_resting_gradients_(self) -> None:
        """After a backward pass, before gradients are clipped: those of weights that rest are zero."""
        for _, parameter, quantizer in self.quantizers():
            rests = quantizer.rests()
            if rests is not None and parameter.grad is not None:
                parameter.grad.masked_fill_(rests, 0)

    @torch.no_grad()
    def adjust_precision_(self, bits: Mapping[str, Any] | None = None) -> dict[str, Adjustment]:
        """Re-quantizes and trims every tensor, then writes the weights; what each quantizer says it did, by name.

        Args:
            bits: brings the tensors it names to so many bits instead (filter by filter, where the quantizer takes
                them), and leaves the others alone.
        """
        if bits is not None:
            _known("bits", bits, self.names())
        done = {
            name: quantizer.adjust_precision_(*([bits[name]] if bits is not None else []))
            for name, _, quantizer in self.quantizers()
            if bits is None or name in bits
        }
        self.write_weights_()
        return done

    def fix_scheme_(self, weight: Callable[..., WeightQuantizer]) -> None:
        """Replaces the weight quantizers by others of the same bits and steps, to fine-tune at a fixed scheme.

        Args:
            weight: called as ``weight(tensor, precision=bits, step=value)`` for each quantized tensor.

        Raises:
            ValueError: a tensor mixes bits, or the quantizers cannot begin at bits and steps.
        """
        self.hold_weights_()
        for name, parameter, old in list(self.quantizers()):
            if not isinstance(old.tensor().precision, int):
                raise ValueError(
                    f"layer {name} has bits for each filter, with which the quantizer of this stage cannot begin: "
                    "leave it out (null), which goes on with that of the stage before"
                )
            step = old.step()
            step = step if step.dim() else float(step)
            try:
                self.weight_quantizers[_key(name)] = weight(parameter, precision=old.precision, step=step)
            except TypeError as error:
                raise ValueError(
                    f"layer {name}: the quantizer of this stage cannot begin at bits and step of the one before "
                    f"({error}): it must take step=, or be left out (null), which goes on with that of the stage before"
                ) from error
        self.write_weights_()

    @contextmanager
    def compiled(self) -> Iterator[None]:
        """Inside, ``net`` runs compiled; the names in the state dict stay, and copies made inside are not compiled.

        The graph holds W and no plane, so an adjustment compiles nothing again. Each mode, training and evaluation,
        is compiled once for whole batches and once for all other sizes.
        """
        self.net.compile()
        try:
            yield
        finally:
            self.net._compiled_call_impl = None  # torch has no public way back
            torch.compiler.reset()  # it compiles a function 8 times at most, and the next stage hooks others in

    @contextmanager
    def observing(self) -> Iterator[None]:
        """Records the ranges of activations anew in every forward pass inside."""
        self.forget_ranges_()
        try:
            for quantizer in self.activation_quantizers.values():
                quantizer.observing = True  # type: ignore[assignment]
            with torch.compiler.set_stance("force_eager"):  # a few batches are not worth a compilation
                yield
        finally:
            for quantizer in self.activation_quantizers.values():
                quantizer.observing = False  # type: ignore[assignment]

    def forget_ranges_(self) -> None:
        """Back to the batch's own range."""
        for quantizer in self.activation_quantizers.values():
            quantizer.range.zero_()  # type: ignore[operator]

    def count_macs_(self, image_size: int) -> None:
        """Counts the multiply-accumulates of every layer for one image and the bits of its input, for ``state()``."""
        layers = {name: module for name, module in self.net.named_modules() if isinstance(module, QUANTIZED_TYPES)}
        quantizers: dict[nn.Module, int] = {
            q: q.precision for q in self.activation_quantizers.values() if isinstance(q, ActivationQuantizer)
        }
        with evaluating(self):  # the quantizers too, which learn from what they see in training
            self.macs = count_macs(self.net, image_size)
            self.input_bits = bits_of_inputs(self.net, layers, quantizers, image_size)

    def activations(self) -> tuple[QuantizedActivation, ...]:
        """The places where activations are quantized (reads the device)."""
        return tuple(
            QuantizedActivation(
                key.replace("/", "."), "input" if self.at_inputs else "output", quantizer.precision,
                quantizer.clip_value(), float(quantizer.range),
            )
            for key, quantizer in self.activation_quantizers.items()
            if isinstance(quantizer, ActivationQuantizer)
        )  # fmt: skip

    def state(self) -> QuantizedState:
        """The network as data: tensors, activations, what stays float (reads the device)."""
        tensors = {name: quantizer.tensor() for name, _, quantizer in self.quantizers()}
        clips = sum(parameter.numel() for parameter in self.activation_quantizers.parameters())
        total = sum(parameter.numel() for parameter in self.net.parameters()) + clips
        return QuantizedState(
            tensors,
            self.activations(),
            total - sum(tensor.codes.numel() for tensor in tensors.values()),
            self.act_precision,
            self.macs,
            self.input_bits,
            self.owners,
        )

    def scheme(self) -> Scheme:
        """The precisions and steps as plain data (reads the device)."""
        return self.state().scheme()


def _key(name: str) -> str:
    # torch refuses dots in the names of submodules
    return name.replace(".", "/")


def _all_match(option: str, patterns: Sequence[str], names: Sequence[str] | Mapping[str, object]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"{option}: the pattern {pattern!r} matches nothing; there are {', '.join(names) or 'no such layers'}"
            )


def _known(option: str, names: Sequence[str] | Mapping[str, object], known: Sequence[str]) -> None:
    unknown = sorted(set(names) - set(known))
    if unknown:
        raise ValueError(f"{option}: there is no quantized tensor {unknown[0]!r}; there are {', '.join(known)}")


def _same_names(precisions: Mapping[str, int], tensors: Mapping[str, object]) -> None:
    unknown, absent = set(precisions) - set(tensors), set(tensors) - set(precisions)
    if unknown or absent:
        raise ValueError(
            "the scheme does not fit this network: "
            + "; ".join(
                f"{what}: {', '.join(sorted(names)[:5])}{' ...' if len(names) > 5 else ''}"
                for what, names in (("only in the scheme", unknown), ("only in the network", absent))
                if names
            )
        )


def _follows_epochs(quantizer: WeightQuantizer) -> bool:
    return type(quantizer).on_epoch is not WeightQuantizer.on_epoch
