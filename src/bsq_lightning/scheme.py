"""The scheme: how many bits each tensor has, as plain data that travels between runs (standard library only)."""

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerScheme:
    """One quantized tensor: its name, number of weights, bits of magnitude, the value of one code step, and the
    multiply-accumulates of its layer for one image (0: not counted)."""

    name: str
    size: int
    precision: int
    step: float
    macs: int = 0

    @property
    def bits(self) -> int:
        """Bits of magnitude of the whole tensor, as the BSQ paper counts them."""
        return self.size * self.precision

    @property
    def signed_bits(self) -> int:
        """Bits with one sign bit for every weight of a tensor that is not empty."""
        return self.size * (self.precision + 1) if self.precision else 0


@dataclass(frozen=True)
class Scheme:
    """All quantized tensors of a network, and how many parameters stay in 32-bit float.

    Three sizes are kept side by side, because papers count differently: magnitude bits of the quantized weights
    (the BSQ paper), the same with the sign bit, and every parameter of the model.

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
            return signed + FLOAT_BITS * (self.float_parameters + len(self.layers))
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
        """Bit operations of one image in 1e9: sum of MACs x bits of the weight x bits of the layer's input.

        A weight has its bits of magnitude and one sign bit; the first layer reads 8-bit pixels, the others activations
        of ``act_precision`` bits (32 where that is 0); layers that stay float count 32 x 32. None: MACs not counted.
        """
        if not any(layer.macs for layer in self.layers):
            return None
        acts = [8] + [self.act_precision or FLOAT_BITS] * (len(self.layers) - 1)
        weights = [layer.precision + 1 if layer.precision else 0 for layer in self.layers]
        quantized = sum(layer.macs * w * a for layer, w, a in zip(self.layers, weights, acts, strict=True))
        return (quantized + self.float_macs * FLOAT_BITS**2) / 1e9

    def sizes(self) -> dict[str, dict[str, float | int | None]]:
        """The three sizes with their compressions, ready for JSON (an infinite compression is None)."""
        result: dict[str, dict[str, float | int | None]] = {}
        for counting in ("paper", "signed", "model"):
            ratio = self.compression(counting)
            bits = self.bits(counting) if self.size else FLOAT_BITS * self.float_parameters
            result[counting] = {"bits": bits, "compression": ratio if math.isfinite(ratio) else None}
        return result

    def precisions(self) -> dict[str, int]:
        """Bits by tensor name."""
        return {layer.name: layer.precision for layer in self.layers}

    def at(self, precision: int) -> "Scheme":
        """The same tensors, all at ``precision`` bits."""
        return replace(self, layers=tuple(replace(layer, precision=precision) for layer in self.layers))

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
                    int(row["precision"]),
                    float(row["step"]),
                    int(row.get("macs", 0)),
                )  # fmt: skip
                for row in content["layers"]
            )
            scheme = cls(
                layers, int(content["float_parameters"]), int(content["act_precision"]),
                int(content.get("float_macs", 0)),
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
            raise FileNotFoundError(f"no scheme file at {path}: give the scheme.json of a finished run folder")
        return cls.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))
