"""From a quantized network to a file that ships, and back: each reads a plain network and its ``QuantizedState``."""

from bsq_lightning.exporters.certificate import Check, Verification, certified_beside, certify, read_certificate, verify
from bsq_lightning.exporters.folding import fold_batch_norm
from bsq_lightning.exporters.hub import export_hub
from bsq_lightning.exporters.integer import IntegerRun, run_in_integers
from bsq_lightning.exporters.latency import Latency, latencies
from bsq_lightning.exporters.ledger import LedgerRow, size_ledger
from bsq_lightning.exporters.onnx_qdq import export_onnx
from bsq_lightning.exporters.packed import export_packed, load
from bsq_lightning.exporters.packed_file import Packed, read_packed
from bsq_lightning.exporters.pair import Exported, hook_activations_, simulated
from bsq_lightning.exporters.torch_export import export_torch

__all__ = [
    "Check",
    "Exported",
    "IntegerRun",
    "Latency",
    "LedgerRow",
    "Packed",
    "Verification",
    "certified_beside",
    "certify",
    "export_hub",
    "export_onnx",
    "export_packed",
    "export_torch",
    "fold_batch_norm",
    "hook_activations_",
    "latencies",
    "load",
    "read_certificate",
    "read_packed",
    "run_in_integers",
    "simulated",
    "size_ledger",
    "verify",
]
