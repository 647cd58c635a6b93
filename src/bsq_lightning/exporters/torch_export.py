"""A ``torch.export`` program: weights as 32-bit floats, activations rounded in its graph, no code of ours in it."""

import io
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bsq_lightning.exporters.pair import Exported, check_target, simulated, write_export
from bsq_lightning.exporters.tracing import first_line, stops_in
from bsq_lightning.quantized_tensor import QuantizedState

NOTE = "all weights, stored as 32-bit float: torch.export has no smaller form for them"


@contextmanager
def _attention_as_exported() -> Iterator[None]:
    """Without the fused kernel of ``nn.MultiheadAttention``, which no program has: it sums in another order, and one
    code that it rounds otherwise changes all that follows."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def export_torch(
    path: str | Path,
    net: nn.Module,
    state: QuantizedState,
    inputs: Tensor,
    *,
    logits: float = 1e-6,
    card: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Exported:
    """Writes a program that ``torch.export.load(path).module()`` runs, for any batch size, without this package.

    Args:
        path: the file, usually ``*.pt2``.
        net: plain network.
        state: its quantized tensors and activations.
        inputs: ``[N, ...]``, N at least 2, to compare on; they do not go into the file.
        logits: allowed difference as a share of the largest logit.
        card: plain data that goes into the file, as ``card.json``.
        overwrite: replace a file that exists.

    Returns:
        The file; ``report`` has the largest difference.

    Raises:
        FileExistsError: the file exists.
        ValueError: the network cannot be exported, or the program differs by more; nothing is written then.
    """
    check_target(path, overwrite)
    reference = simulated(net, state)
    batch = torch.export.Dim("batch")
    try:
        program = torch.export.export(reference, (torch.zeros_like(inputs[:2]),), dynamic_shapes=({0: batch},))
    except Exception as error:  # what the tracer meets in a foreign forward may raise anything
        raise ValueError(
            f"{type(net).__name__} cannot be exported for any batch size{stops_in(reference, inputs)}: "
            f"{first_line(error)}"
        ) from error
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={"card.json": json.dumps(dict(card or {}))})
    with torch.no_grad():
        with _attention_as_exported():
            expected = reference(inputs)
        found = torch.export.load(io.BytesIO(buffer.getvalue())).module()(inputs)
    difference = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-30)
    if not difference <= logits:
        raise ValueError(f"the program differs from the network by {difference:.3g}; {logits:g} is allowed")
    content = buffer.getvalue()
    return Exported(write_export(path, content, overwrite), len(content), (NOTE,), {"logits": difference})
