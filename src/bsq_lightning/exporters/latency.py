"""How long one image takes in onnxruntime: the float network beside its quantized graph, in one run."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from bsq_lightning.exporters.onnx_graph import open_session
from bsq_lightning.exporters.onnx_qdq import export_onnx
from bsq_lightning.exporters.pair import plain_copy
from bsq_lightning.quantized_tensor import QuantizedState


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one side: median and quartiles.

    Args:
        side: its name.
        median, low, high: of the rounds.
    """

    side: str
    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.side}: {self.median:.3g} [{self.low:.3g}, {self.high:.3g}] ms"


def latencies(path: str | Path, net: nn.Module, state: QuantizedState, inputs: Tensor, rounds: int) -> list[Latency]:
    """Times one image, the sides one after the other in every round, so that all of them see the same machine.

    Args:
        path: the quantized graph, of ``export_onnx``.
        net: plain network; its graph in floats, batch norms folded, is the first side.
        state: its quantized tensors.
        inputs: ``[N, ...]``, N at least 2.
        rounds: at least 2.

    Returns:
        The float graph, and the quantized one, each with basic and with all optimisations, on as many threads as torch
        has.

    Raises:
        ValueError: fewer than 2 rounds, or a graph that onnxruntime does not run.
    """
    if rounds < 2:
        raise ValueError(f"a spread needs 2 rounds at least, not {rounds}")
    image = {"input": inputs[:1].cpu().numpy()}
    sides: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        plain = export_onnx(Path(folder) / "float.onnx", plain_copy(net, state), QuantizedState({}), inputs, fold=True)
        for name, file in (("float", plain.path), ("quantized", Path(path))):
            for optimized in (False, True):
                session = open_session(file.read_bytes(), optimized)
                word = "all" if optimized else "basic"
                sides[f"{name}, {word} optimisations"] = lambda session=session: session.run(None, image)
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for place in range(rounds + 3):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if place > 2:  # the first ones allocate
                seconds[name].append(1000 * (time.perf_counter() - start))
    return [Latency(name, *_median_and_quartiles(each)) for name, each in seconds.items()]


def _median_and_quartiles(values: list[float]) -> tuple[float, float, float]:
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return median, low, high
