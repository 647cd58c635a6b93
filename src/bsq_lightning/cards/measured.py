"""The fields of a card that weights and architecture tell."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.cards.card import NOT_APPLICABLE, UNKNOWN
from bsq_lightning.network import QUANTIZED_TYPES
from bsq_lightning.ops.one_image import blank_image, show_
from bsq_lightning.quantized_tensor import Filters, Grid, Planes, Points, QuantizedState, QuantizedTensor, Shifts
from bsq_lightning.scheme import FLOAT_BITS, Scheme

NORMS = (nn.modules.batchnorm._BatchNorm,)
SHORTCUTS = ("downsample", "shortcut")


def weights_of(state: QuantizedState) -> dict[str, Any]:
    """Bits, levels and steps of the quantized weights."""
    tensors, layers = list(state.tensors.values()), state.scheme().layers
    bits = {layer.name: _number(layer.bits / layer.size) for layer in layers}
    inner = layers[1:-1]
    inner_size = sum(layer.size for layer in inner)
    return {
        "bits_per_layer": bits,
        "bits_mean_param_weighted": state.scheme().mean_precision,
        "bits_mean_unweighted": sum(bits.values()) / len(bits),
        "bits_mean_without_ends": (sum(x.bits for x in inner) / inner_size) if inner_size else NOT_APPLICABLE,
        "bits_stored_with_sign": sum(layer.signed_bits for layer in layers) / state.scheme().size,
        "sign": one_of(["inside the bits" if tensor.sign == "inside" else "beside the bits" for tensor in tensors]),
        "bitwidths_used": sorted({n for tensor in tensors for n in _bitwidths(tensor)}),
        "levels_per_layer": {name: count_levels(tensor) for name, tensor in state.tensors.items()},
        "granularity": one_of([granularity(tensor) for tensor in tensors]),
        "symmetric": all(_is_symmetric(tensor) for tensor in tensors),
        "zero_point": 0 if all(_has_zero(tensor) for tensor in tensors) else "none: no level is zero",
        "scale_format": "power of two" if all(_powers_of_two(tensor.step) for tensor in tensors) else "fp32",
        "sym_vs_asym_gap_bits": symmetric_gap(tensors),
    }


def activations_of(net: nn.Module, state: QuantizedState, image_size: int | None) -> dict[str, Any]:
    """Where activations are quantized and how many bits layers read."""
    sites = state.activations
    sizes = input_sizes(net, image_size) if image_size and state.input_bits else {}
    read = {name: size * state.input_bits[name] for name, size in sizes.items() if name in state.input_bits}
    elements = sum(sizes[name] for name in read)
    fixed = [site.range > 0 for site in sites]
    return {
        "bits": one_of([site.bits for site in sites]) if sites else FLOAT_BITS,
        "granularity": "tensor" if sites else NOT_APPLICABLE,
        "symmetric": "codes from 0 where activations have no sign, else the sign is extra" if sites else NOT_APPLICABLE,
        "static": one_of([f"range {'fixed' if each else 'of each batch, or learned'}" for each in fixed])
        if sites
        else NOT_APPLICABLE,
        "place": one_of([f"{site.at} of the module" for site in sites]) if sites else "no activation is quantized",
        "quantized_tensors": [site.site for site in sites],
        "mean_bits_elementwise": sum(read.values()) / elements if elements else UNKNOWN,
        "max_feature_map_bits": max(read.values(), default=0) or UNKNOWN,
    }


def layers_of(net: nn.Module, state: QuantizedState) -> dict[str, Any]:
    """Which kinds of layers are quantized, and at how many bits."""
    layers = {name: module for name, module in net.named_modules() if isinstance(module, QUANTIZED_TYPES)}
    names = list(layers)
    stored = {layer.name: _number(layer.bits / layer.size) for layer in state.scheme().layers}

    def kind(chosen: Sequence[str]) -> dict[str, Any]:
        bits = [stored[name] for name in (state.owners.get(each, each) for each in chosen) if name in stored]
        if not chosen:
            return {"quantized": NOT_APPLICABLE, "bits": NOT_APPLICABLE}
        quantized = "no" if not bits else "yes" if len(bits) == len(chosen) else f"{len(bits)} of {len(chosen)}"
        return {"quantized": quantized, "bits": sorted(set(bits)) if bits else FLOAT_BITS}

    norms = sum(isinstance(module, NORMS) for module in net.modules())
    biases = [f"{name}.bias" for name, layer in layers.items() if layer.bias is not None]
    parameters = sum(parameter.numel() for parameter in net.parameters())
    quantized = sum(tensor.codes.numel() for tensor in state.tensors.values())
    return {
        "first": kind(names[:1]),
        "last": kind(names[-1:]),
        "depthwise": kind([name for name, layer in layers.items() if is_depthwise(layer)]),
        "downsample": kind([name for name in names if any(word in name for word in SHORTCUTS)]),
        "embeddings": kind([name for name, module in net.named_modules() if isinstance(module, nn.Embedding)]),
        "biases": kind(biases),
        "batchnorm": {"quantized": "no", "bits": FLOAT_BITS, "layers": norms} if norms else kind([]),
        "float_layers": [name for name in names if state.owners.get(name, name) not in state.tensors],
        "unquantized_parameter_fraction": 1 - quantized / parameters,
    }


def accumulation_of(net: nn.Module, state: QuantizedState) -> dict[str, int]:
    """``b_w + b_a + ceil(log2 fan_in)`` of each layer whose input is quantized, signs of weights included."""
    result = {}
    for name, module in net.named_modules():
        read, tensor = state.input_bits.get(name, FLOAT_BITS), state.tensors.get(state.owners.get(name, name))
        if not isinstance(module, QUANTIZED_TYPES) or tensor is None or read >= FLOAT_BITS or not tensor.codes.numel():
            continue
        widest = int(tensor.codes.abs().max()).bit_length() + 1 if not isinstance(tensor.extra, Grid) else FLOAT_BITS
        result[name] = widest + read + math.ceil(math.log2(max(1, tensor.codes[0].numel())))
    return result


def arithmetic_of(state: QuantizedState) -> dict[str, Any]:
    """What a multiply-accumulate of this network is."""
    tensors = list(state.tensors.values())
    shifts = [tensor for tensor in tensors if isinstance(tensor.extra, Shifts)]
    numbers = [(tensor.extra.number.double().mean(), tensor.codes.numel()) for tensor in shifts if tensor.extra]  # type: ignore[union-attr]
    size = sum(tensor.codes.numel() for tensor in tensors)
    products = sum(_products(tensor) * tensor.codes.numel() for tensor in tensors) / size
    special = {
        Shifts: "bit-serial, a group of weights shares its shifts",
        Points: "several low-bit products a channel, summed with factors",
        Grid: "values of a codebook",
        Planes: "bit planes with gaps",
        Filters: "bits of each filter, or one width for all",
    }
    return {
        "products_per_mac": float(products),
        "shifts_per_weight": float(sum(n * count for n, count in numbers) / sum(count for _, count in numbers))
        if numbers
        else NOT_APPLICABLE,
        "special_hardware": [text for kind, text in special.items() if any(isinstance(t.extra, kind) for t in tensors)],
    }


def cost_of(scheme: Scheme) -> dict[str, Any]:
    """The three countings; overhead is of steps and codebooks. Positions of shifts are in the bits of the weights."""
    sizes = scheme.sizes()
    ratios = {f"compression_{name}": size["compression"] or "no bit left" for name, size in sizes.items()}
    return {
        "weight_bits": sizes["signed"]["bits"],
        **ratios,
        "overhead_bits": sum(layer.side_bits for layer in scheme.layers),
        "gbops": UNKNOWN if scheme.gbops is None else scheme.gbops,
    }


def mixed_precision(state: QuantizedState) -> str:
    """Where bits differ: ``none``, or between ``layers`` (the ends apart), ``channels``, or ``points`` of channels."""
    inner = list(state.tensors.values())[1:-1]
    numbers = [t.extra.number for t in state.tensors.values() if isinstance(t.extra, Shifts)]
    numbers += [t.extra.bits for t in state.tensors.values() if isinstance(t.extra, Filters)]
    kinds = {
        "layers": len({tensor.precision for tensor in inner}) > 1,
        "channels": any(len(number.unique()) > 1 for number in numbers),
        "points": any(_products(tensor) > 1 for tensor in state.tensors.values()),
    }
    return ", ".join(kind for kind, found in kinds.items() if found) or "none"


def count_levels(tensor: QuantizedTensor) -> int:
    """Distinct values that occur in W, or the most that occur in a channel where each has its own step."""
    weight = tensor.dequantize()
    if granularity(tensor) == "tensor" and not isinstance(tensor.extra, Points):
        return len(tensor.codes.unique())
    ordered = weight.flatten(1).sort(1).values
    return int((ordered[:, 1:] != ordered[:, :-1]).sum(1).max()) + 1


def granularity(tensor: QuantizedTensor) -> str:
    """Of the steps, by their shape."""
    return "output channel" if tensor.step.dim() else "tensor"


def symmetric_gap(tensors: Sequence[QuantizedTensor]) -> float:
    """Bits that a symmetric range wastes, ``log2(2 max|W| / (max W - min W))``, mean over weights.

    Example:
        >>> codes = torch.tensor([-10, 7], dtype=torch.int32)
        >>> round(symmetric_gap([QuantizedTensor(codes, torch.tensor(0.1), 4)]), 3)
        0.234
    """
    total, count = 0.0, 0
    for tensor in tensors:
        weight = tensor.dequantize().double()
        width = float(weight.max() - weight.min())
        total += weight.numel() * (math.log2(2 * float(weight.abs().max()) / width) if width else 0.0)
        count += weight.numel()
    return total / count if count else 0.0


def input_sizes(net: nn.Module, image_size: int) -> dict[str, int]:
    """Elements that each convolution or linear layer reads for one image."""
    found: dict[str, int] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda module, args: found.update({name: args[0].numel()})

    layers = {name: module for name, module in net.named_modules() if isinstance(module, QUANTIZED_TYPES)}
    hooks = [layer.register_forward_pre_hook(note(name)) for name, layer in layers.items()]
    try:
        show_(net, blank_image(net, image_size))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each filter of a convolution reads one channel of several."""
    return bool(getattr(layer, "groups", 1) > 1 and layer.groups == layer.in_channels)  # type: ignore[union-attr]


def one_of(values: Sequence[Any]) -> Any:
    """The value that all share, or all that occur with their number.

    Example:
        >>> one_of([4, 4]), one_of(["tensor", "channel", "tensor"])
        (4, 'tensor (2), channel (1)')
    """
    counts: Mapping[Any, int] = {value: list(values).count(value) for value in dict.fromkeys(values)}
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{value} ({count})" for value, count in counts.items())


def _bitwidths(tensor: QuantizedTensor) -> list[int | float]:
    return tensor.extra.bits.unique().tolist() if isinstance(tensor.extra, Filters) else [_number(tensor.precision)]


def _products(tensor: QuantizedTensor) -> float:
    if not isinstance(tensor.extra, Points):
        return 1.0
    return 1 + float((tensor.extra.step != 0).sum()) / max(1, len(tensor.codes))


def _is_symmetric(tensor: QuantizedTensor) -> bool:
    if isinstance(tensor.extra, Grid):
        return bool(torch.equal(tensor.extra.values.sort().values, (-tensor.extra.values).sort().values))
    if tensor.sign == "extra" or not tensor.codes.numel():
        return True
    return int(tensor.codes.min()) > -(2 ** (math.ceil(tensor.precision) - 1))


def _has_zero(tensor: QuantizedTensor) -> bool:
    return bool((tensor.extra.values == 0).any()) if isinstance(tensor.extra, Grid) else True


def _powers_of_two(step: Tensor) -> bool:
    used = step[step != 0]
    return bool((used.frexp().mantissa.abs() == 0.5).all())


def _number(value: float) -> int | float:
    return int(value) if value == int(value) else round(float(value), 6)
