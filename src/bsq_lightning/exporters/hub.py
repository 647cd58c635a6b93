"""The folder that the Hugging Face hub expects: a model card, a config, and the packed file."""

import json
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from bsq_lightning.cards import Card, build_card
from bsq_lightning.exporters.packed import export_packed
from bsq_lightning.exporters.packed_file import FORMAT
from bsq_lightning.exporters.pair import Exported, check_target, write_export
from bsq_lightning.quantized_tensor import QuantizedState

TASK = "image-classification"
LOAD = """```python
import bsq_lightning
from {module} import {name}

net = bsq_lightning.load("{file}", {name}({arguments}))
logits = net(images)  # float32 [N, 3, {size}, {size}], normalized as in training
```"""


def export_hub(
    path: str | Path,
    net: nn.Module,
    state: QuantizedState,
    inputs: Tensor,
    *,
    card: Mapping[str, Any] | None = None,
    license: str | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a packed file and, beside it, ``config.json`` and ``README.md`` with the quantization card.

    ``huggingface_hub.upload_folder(folder_path=..., repo_id=...)`` publishes the folder. The card has the
    command of the run and relative paths: read it before.

    Args:
        path: the packed file in the folder that is to be uploaded, ``FOLDER/model.safetensors``.
        net: plain network.
        state: its quantized tensors and activations.
        inputs: ``[N, 3, S, S]``; its size is told, nothing else of it.
        card: ``card``, the sections of a quantization card, is computed from the network if it is missing;
            ``architecture``, its ``target`` and ``arguments``, tells how the network is built.
        license: name of a license as the hub spells it; the author's to choose, so none is given by default.
        overwrite: replace files that exist.

    Returns:
        The packed file; ``report`` tells the bytes of its parts.

    Raises:
        ModuleNotFoundError: huggingface_hub is missing.
        FileExistsError: one of the three files exists.
        ValueError: network and state do not fit.
    """
    if find_spec("huggingface_hub") is None:
        raise ModuleNotFoundError("export=hub needs huggingface_hub: pip install 'bsq_lightning[hub]'")
    path, card = Path(path), dict(card or {})
    beside = {name: path.with_name(name) for name in ("config.json", "README.md")}
    for each in beside.values():
        check_target(each, overwrite)
    quantization = Card(card["card"]) if "card" in card else build_card(net, state)
    architecture = card.get("architecture") or {"target": f"{type(net).__module__}.{type(net).__qualname__}"}
    packed = export_packed(path, net, state, inputs, card=card, overwrite=overwrite)
    config = {
        "library_name": "bsq_lightning", "format": FORMAT, "file": path.name, "architecture": architecture,
        "image_size": inputs.shape[-1], "bits": quantization["weights.bits_per_layer"],
    }  # fmt: skip
    text = _model_card(quantization, architecture, path.name, packed.size, inputs.shape[-1], license)
    write_export(beside["config.json"], (json.dumps(config, indent=2) + "\n").encode(), overwrite)
    write_export(beside["README.md"], text.encode(), overwrite)
    return packed


def _model_card(
    card: Card, architecture: Mapping[str, Any], file: str, size: int, image_size: int, license: str | None
) -> str:
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    module, _, name = str(architecture["target"]).rpartition(".")
    dataset, accuracy = card["model.dataset"], card["results.accuracy"]
    tested = isinstance(accuracy, float)
    results = [
        EvalResult(TASK, dataset_type="custom", dataset_name=dataset, metric_type="accuracy", metric_value=accuracy)
    ]
    data = ModelCardData(
        library_name="bsq_lightning", pipeline_tag=TASK, tags=["quantization", "mixed-precision", "pytorch"],
        license=license, model_name=f"{name}, quantized" if tested else None, eval_results=results if tested else None,
    )  # fmt: skip
    arguments = ", ".join(f"{key}={value!r}" for key, value in (architecture.get("arguments") or {}).items())
    folded = "Batch norms were folded into the layers before them: `fold_batch_norm_(net)` of "
    folded += "`bsq_lightning.post_training` makes such a network.\n"
    lines = [
        f"# {name}, quantized",
        "",
        f"{card['weights.bits_mean_param_weighted']:.2f} bits a weight on average, signs beside them; {size:,} bytes; "
        f"test accuracy {accuracy if not tested else f'{accuracy:.4f}'} on {dataset}.",
        "",
        LOAD.format(module=module, name=name, file=file, arguments=arguments, size=image_size),
        "",
        *([folded] if architecture.get("folded") else []),
        f"`python -m bsq_lightning.verify {file}` looks at the file without running anything in it.",
        "",
        "#" + card.to_markdown(),  # its title one level down
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)).content
