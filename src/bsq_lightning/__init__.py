"""Bit-level sparsity quantization: a float network goes in, a mixed-precision one comes out, with one knob, alpha.

Commands: ``python -m bsq_lightning.train``, ``evaluate``, ``search``, ``sweep``, ``report``, ``allocate``, ``ptq``,
``export``, ``verify``, ``card``, ``slices``, ``accelerator``. In a notebook: ``bsq_lightning.quantize`` and what is
beside it in ``bsq_lightning.library``.
docs/architecture.md draws the floors, each importing only from those beneath it; ``make lint`` keeps them.
"""

from typing import Any

__version__ = "0.1.0"
#: What ``bsq_lightning.library`` offers from here, imported when it is first asked for: torch takes seconds.
_DOOR = ("quantize", "choose_bits", "build_optimizer", "adjust", "calibrate", "read_scheme", "save", "load")


def __getattr__(name: str) -> Any:
    if name in _DOOR:
        from bsq_lightning import library

        return getattr(library, name)
    raise AttributeError(f"module 'bsq_lightning' has no attribute {name!r}; a notebook finds {', '.join(_DOOR)}")


def __dir__() -> list[str]:
    return [*globals(), *_DOOR]
