"""The scheme: how many bits each tensor has, as plain data that travels between runs (standard library only)."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

FLOAT_BITS = 32
PIXEL_BITS = 8


@dataclass(frozen=True)
class LayerScheme:
    """One quantized tensor.

    Args:
        name: of its layer.
        size: number of weights.
        precision: bits of magnitude, the sign not counted; a mean where the method mixes them.
        step: the value of one code; the mean over output channels where each has its own.
        macs: multiply-accumulates of its layer for one image; 0 if not counted.
        bits_of_input: bits of what its layer reads; 0 if not known.
        stored: bits of the codes without and with signs, and of steps, where they do not follow from ``precision``.
    """

    name: str
    size: int
    precision: int | float
    step: float
    macs: int = 0
    bits_of_input: int = 0
    stored: tuple[int, int, int] | None = None

    @property
    def bits(self) -> int:
        """Bits of magnitude of the whole tensor, as the BSQ paper counts them."""
        return self.stored[0] if self.stored else self.size * int(self.precision)

    @property
    def signed_bits(self) -> int:
        """Bits with one sign bit for every weight of a tensor that is not empty."""
        if self.stored:
            return self.stored[1]
        return self.size * (int(self.precision) + 1) if self.precision else 0

    @property
    def side_bits(self) -> int:
        """Bits of its step, or steps."""
        return self.stored[2] if self.stored else FLOAT_BITS

    def at(self, precision: int | float) -> "LayerScheme":
        """The same tensor with whole bits for every weight and a sign beside them; its steps stay as many."""
        stored = None
        if self.stored:
            magnitude = math.ceil(self.size * precision)
            stored = (magnitude, magnitude + (self.size if precision else 0), self.side_bits)
        return replace(self, precision=precision, stored=stored)

    @property
    def weight_bits(self) -> float:
        """Bits of one weight with its sign, which an operation of its layer takes."""
        return self.signed_bits / self.size if self.size else 0.0


@dataclass(frozen=True)
class Scheme:
    """All quantized tensors of a network, and how many parameters stay in 32-bit float.

    Three sizes are kept side by side, because papers count differently: magnitude bits of the quantized weights
    (the BSQ paper), the same with the sign bit, and every parameter of the model.

    Args:
        layers: the quantized tensors, in the order of the network.
        float_parameters: parameters that stay in 32-bit float.
        act_precision: bits of activations, 0 for float.
        float_macs: multiply-accumulates of the layers that stay float.
        tied: for each further layer that uses a tensor again: the tensor's name, its own MACs and bits of its input.

    Example:
        >>> scheme = Scheme((LayerScheme("conv", 100, 3, 0.1), LayerScheme("fc", 100, 1, 0.2)), float_parameters=20)
        >>> scheme.mean_precision, scheme.compression("paper"), round(scheme.compression("signed"), 2)
        (2.0, 16.0, 10.67)
        >>> round(scheme.compression("model"), 2)
        5.4
    """

    layers: tuple[LayerScheme, ...]
    float_parameters: int = 0
    act_precision: int = 0
    float_macs: int = 0
    tied: tuple[tuple[str, int, int], ...] = ()

    @property
    def size(self) -> int:
        """Number of quantized weights."""
        return sum(layer.size for layer in self.layers)

    @property
    def mean_precision(self) -> float:
        """Mean bits of magnitude over the quantized weights."""
        return sum(layer.bits for layer in self.layers) / self.size if self.size else float(FLOAT_BITS)

    def bits(self, counting: str) -> int:
        """Size in bits. ``counting`` is ``paper``, ``signed`` or ``model`` (scales and float parameters included)."""
        if counting == "paper":
            return sum(layer.bits for layer in self.layers)
        signed = sum(layer.signed_bits for layer in self.layers)
        if counting == "signed":
            return signed
        if counting == "model":
            return signed + FLOAT_BITS * self.float_parameters + sum(layer.side_bits for layer in self.layers)
        raise ValueError(f"counting is one of paper, signed, model, not {counting!r}")

    def compression(self, counting: str) -> float:
        """How many times smaller than in 32-bit float; infinite where no bit is left, 1 where nothing is quantized."""
        size = self.size + (self.float_parameters if counting == "model" else 0)
        if not self.size:
            return 1.0
        bits = self.bits(counting)
        return FLOAT_BITS * size / bits if bits else math.inf

    @property
    def gbops(self) -> float | None:
        """Bit operations of one image in 1e9: sum of MACs x bits of the weight, sign included, x bits of what is read.

        A layer reads 8-bit pixels, activations at their bits, or floats at 32 (``bits_of_input``; in files that do not
        tell it, the first quantized layer is taken to read pixels and the others quantized activations). Layers that
        stay float count 32 x 32. None: MACs not counted.
        """
        if not any(layer.macs for layer in self.layers):
            return None
        act = self.act_precision or FLOAT_BITS
        total = self.float_macs * FLOAT_BITS**2
        for place, layer in enumerate(self.layers):
            total += layer.macs * layer.weight_bits * (layer.bits_of_input or (act if place else PIXEL_BITS))
        weights = {layer.name: layer.weight_bits for layer in self.layers}
        total += sum(macs * weights[name] * (read or act) for name, macs, read in self.tied)
        return total / 1e9

    def sizes(self) -> dict[str, dict[str, float | int | None]]:
        """The three sizes with their compressions, ready for JSON (an infinite compression is None)."""
        result: dict[str, dict[str, float | int | None]] = {}
        for counting in ("paper", "signed", "model"):
            ratio = self.compression(counting)
            bits = self.bits(counting) if self.size else FLOAT_BITS * self.float_parameters
            result[counting] = {"bits": bits, "compression": ratio if math.isfinite(ratio) else None}
        return result

    def precisions(self) -> dict[str, int | float]:
        """Bits by tensor name."""
        return {layer.name: layer.precision for layer in self.layers}

    def whole_precisions(self) -> dict[str, int]:
        """Bits by tensor name, for quantizers to begin with.

        Raises:
            ValueError: a tensor mixes them.
        """
        mixed = [layer.name for layer in self.layers if not isinstance(layer.precision, int)]
        if mixed:
            raise ValueError(f"the scheme mixes bits inside {mixed[0]}: begin with one number for each layer")
        return {layer.name: int(layer.precision) for layer in self.layers}

    def at(self, precision: int) -> "Scheme":
        """The same tensors, all at ``precision`` bits."""
        return replace(self, layers=tuple(layer.at(precision) for layer in self.layers))

    def to_json(self) -> str:
        """JSON text; ``from_json`` reads it back."""
        return json.dumps(asdict(self), indent=1)

    @classmethod
    def from_json(cls, text: str, source: str = "the scheme") -> "Scheme":
        """Reads what ``to_json`` wrote. Only numbers and names are taken, nothing is executed.

        Raises:
            ValueError: the text is not a scheme; ``source`` names it in the message.
        """
        try:
            content = json.loads(text)
            layers = tuple(
                LayerScheme(
                    str(row["name"]),
                    int(row["size"]),
                    _bits(row["precision"], row.get("stored")),
                    float(row["step"]),
                    int(row.get("macs", 0)),
                    int(row.get("bits_of_input", 0)),
                    None if row.get("stored") is None else stored_bits(row["stored"]),
                )
                for row in content["layers"]
            )
            scheme = cls(
                layers, int(content["float_parameters"]), int(content["act_precision"]),
                int(content.get("float_macs", 0)),
                tuple((str(name), int(macs), int(read)) for name, macs, read in content.get("tied", ())),
            )  # fmt: skip
            float(scheme.bits("model"))  # JSON has no largest number
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(
                f"{source} is not a scheme ({type(error).__name__}: {error}). "
                "Give the scheme.json of a run folder: layers with name, size, precision and step."
            ) from error
        wrong = [layer.name for layer in layers if not 0 <= layer.precision <= 16 or layer.size < 1]
        if wrong or not layers:
            raise ValueError(f"{source}: precision must be 0..16 and size positive; wrong for {wrong or 'no layer'}")
        return scheme

    @classmethod
    def load(cls, path: str | Path) -> "Scheme":
        """Reads a ``scheme.json``.

        Raises:
            FileNotFoundError: no such file.
            ValueError: the file is not a scheme.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(
                f"no scheme file at {path}: give the scheme.json of a finished run folder, "
                "or one that python -m bsq_lightning.allocate wrote"
            )
        return cls.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _bits(value: Any, stored: Any) -> int | float:
    """Whole where it is whole; a mean of bits, which says how they are stored, stays a float where it happens to be."""
    return int(value) if int(value) == float(value) and (stored is None or isinstance(value, int)) else float(value)


def stored_bits(value: Any) -> tuple[int, int, int]:
    """``LayerScheme.stored`` from JSON.

    Raises:
        ValueError, TypeError: no three sizes, or signs that make a tensor smaller.
    """
    magnitude, signed, side = (int(bits) for bits in value)
    if not 0 <= magnitude <= signed or side < 0:
        raise ValueError(f"stored bits of {value}")
    return magnitude, signed, side
