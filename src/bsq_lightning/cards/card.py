"""The card: a fixed set of fields, none of which may be left out (standard library and YAML only)."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

VERSION = 2
NOT_APPLICABLE, UNKNOWN = "n/a", "unknown"
#: Sections and their fields. What the papers on confounders of quantization ask for (arXiv 2102.06366; its layout of a
#: card was not readable, the fields are ours).
SCHEMA: dict[str, tuple[str, ...]] = {
    "generated_from": (
        "checkpoint", "checkpoint_sha256", "quantized_sha256", "float_weights_sha256", "commit", "command", "seed",
        "versions", "date",
    ),
    "model": (
        "name", "parameters", "float_weights", "float_accuracy", "task", "dataset", "eval_images", "preprocessing",
    ),
    "method": ("name", "kind", "paper", "mixed_precision"),
    "weights": (
        "bits_per_layer", "bits_mean_param_weighted", "bits_mean_unweighted", "bits_mean_without_ends",
        "bits_stored_with_sign", "sign", "bitwidths_used", "allowed_bitwidths", "levels_per_layer", "granularity",
        "symmetric", "zero_point", "range", "scale_format", "rounding", "sym_vs_asym_gap_bits",
    ),
    "activations": (
        "bits", "granularity", "symmetric", "range", "static", "place", "quantized_tensors", "mean_bits_elementwise",
        "max_feature_map_bits",
    ),
    "layers": (
        "first", "last", "depthwise", "downsample", "embeddings", "biases", "batchnorm", "float_layers",
        "unquantized_parameter_fraction",
    ),
    "batchnorm": ("folded", "re_estimated"),
    "accumulation": ("worst_case_bits_per_layer",),
    "arithmetic": ("integer_only", "products_per_mac", "shifts_per_weight", "special_hardware"),
    "data": (
        "calibration_images", "fingerprint", "labelled", "labels", "training_images", "epochs", "augmentation",
    ),
    "compute": ("hours", "device", "hyperparameters_swept", "split_of_sweeps"),
    "cost": (
        "weight_bits", "compression_paper", "compression_signed", "compression_model", "overhead_bits", "gbops",
    ),
    "results": ("accuracy", "std", "seeds", "delta_to_float", "val", "checkpoint_selected_on"),
    "deviations_from_paper": ("list",),
}  # fmt: skip


@dataclass(frozen=True)
class Card:
    """Sections of fields, each a plain value, list or dictionary; ``n/a`` and ``unknown`` are values, absence is none.

    A value that nothing but the config tells is ``{value: ..., source: config}``; all others are computed from weights.

    Args:
        sections: ``sections[section][field]``, those of ``SCHEMA``.

    Raises:
        ValueError: a field is missing, empty or unknown; the message names it.
    """

    sections: Mapping[str, Mapping[str, Any]]

    def __post_init__(self) -> None:
        wrong = [f"there is no section {name!r}" for name in self.sections if name not in SCHEMA]
        for name, fields in SCHEMA.items():
            section = self.sections.get(name)
            if not isinstance(section, Mapping):
                wrong.append(f"{name} is missing")
                continue
            wrong += [f"{name}.{field} is missing" for field in fields if section.get(field) is None]
            wrong += [f"there is no field {name}.{field}" for field in section if field not in fields]
        if wrong:
            raise ValueError(f"not a whole card: {'; '.join(wrong[:5])}")
        ordered = {name: {field: self.sections[name][field] for field in fields} for name, fields in SCHEMA.items()}
        # Plain values: torch has a class for its version.
        object.__setattr__(self, "sections", json.loads(json.dumps(ordered)))

    def __getitem__(self, field: str) -> Any:
        """The value of ``section.field``."""
        section, _, name = field.partition(".")
        return self.sections[section][name]

    def to_yaml(self) -> str:
        """The card as YAML."""
        content = {"card_version": VERSION, **{name: dict(fields) for name, fields in self.sections.items()}}
        return yaml.dump(content, Dumper=_Plain, sort_keys=False, allow_unicode=True, width=120)

    @classmethod
    def from_yaml(cls, text: str, source: str = "card") -> "Card":
        """Reads what ``to_yaml`` wrote. Plain values only; nothing is executed.

        Raises:
            ValueError: it is no card; ``source`` names it in the message.
        """
        try:
            if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text)):
                raise ValueError("it repeats parts by reference, which no card does")
            content = yaml.safe_load(text)
            if not isinstance(content, dict) or content.pop("card_version", None) != VERSION:
                raise ValueError(
                    f"it has no card_version {VERSION}; of a run, python -m bsq_lightning.card run=FOLDER "
                    "overwrite=true writes it anew"
                )
            return cls(content)
        except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
            raise ValueError(f"{source} is not a quantization card ({' '.join(str(error).split())})") from error

    @classmethod
    def load(cls, path: str | Path) -> "Card":
        """Reads a ``card.yaml``, or that of a run folder.

        Raises:
            FileNotFoundError: no such file.
            ValueError: it is no card.
        """
        path = Path(path).expanduser()
        path = path / "card.yaml" if path.is_dir() else path
        if not path.is_file():
            raise FileNotFoundError(f"there is no {path}: python -m bsq_lightning.card run=FOLDER writes it")
        return cls.from_yaml(path.read_text(encoding="utf-8", errors="replace"), str(path))

    def flat(self) -> dict[str, Any]:
        """All values by dotted name; a value told by the config is the value."""
        return dict(_flat("", self.sections))

    def differences(self, other: "Card") -> dict[str, tuple[Any, Any]]:
        """The fields in which two cards differ, with both values (``n/a`` where one has none).

        ``generated_from`` is left out: two runs always differ in it.
        """
        mine, theirs = self.flat(), other.flat()
        names = [name for name in {**mine, **theirs} if not name.startswith("generated_from.")]
        pairs = {name: (mine.get(name, NOT_APPLICABLE), theirs.get(name, NOT_APPLICABLE)) for name in names}
        return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}

    def to_markdown(self) -> str:
        """The card as Markdown: one table, a row for each field."""
        lines = ["# Quantization card", "", "| field | value |", "|---|---|"]
        for section, fields in self.sections.items():
            for name, value in fields.items():
                title = section if name == "list" else f"{section}.{name}"
                lines.append(f"| {title} | {cell(value)} |")
        told = "*(config)*: told by the config; everything else is computed from the weights of this network."
        return "\n".join([*lines, "", told, ""])


def told(value: Any) -> Any:
    """A value that only the config tells."""
    return UNKNOWN if value is None else {"value": value, "source": "config"}


def is_told(value: Any) -> bool:
    """Whether a field says that the config told it."""
    return isinstance(value, Mapping) and value.keys() == {"value", "source"}


def cell(value: Any) -> str:
    """A value as text in a table.

    Example:
        >>> cell({"conv1": 8, "fc": 4}), cell(told(3)), cell([])
        ('conv1 8, fc 4', '3 *(config)*', 'none')
    """
    if is_told(value):
        return f"{cell(value['value'])} *(config)*"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {cell(each)}" for key, each in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return "; ".join(cell(each) for each in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.7g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _flat(prefix: str, node: Any) -> Iterator[tuple[str, Any]]:
    if is_told(node):
        node = node["value"]
    if isinstance(node, Mapping) and node:
        for key, value in node.items():
            yield from _flat(f"{prefix}.{key}" if prefix else str(key), value)
    else:
        yield prefix, node


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True
