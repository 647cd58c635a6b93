"""Reads a pickle of numpy arrays without running anything that the file asks for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """An array from its bytes, as numpy's function of this name makes it for protocol 5."""
    return np.frombuffer(buffer, dtype).reshape(shape, order=order)


# numpy's own function, which no public name leads to.
_RECONSTRUCT: Any = np.empty(1).__reduce__()[0]

# Each name as numpy 1 and numpy 2 write it, and what it stands for here.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): str.encode,  # how Python 3 spells bytes in a file that Python 2 can read
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _RECONSTRUCT for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class NumpyUnpickler(pickle.Unpickler):
    """An unpickler that knows plain containers, numbers, text and numpy arrays, and refuses all else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module_name}.{global_name}, which is refused") from None


def read_numpy_pickle(path: Path) -> dict[Any, Any]:
    """Reads a pickled dictionary of arrays, lists, numbers and text, written by Python 2 or 3.

    Raises:
        ValueError: the file is cut short, holds something else, or asks for any code to be run.
    """
    try:
        with path.open("rb") as file:
            content = NumpyUnpickler(file, encoding="latin1").load()
    except OSError:
        raise
    except Exception as error:  # damaged bytes make an unpickler fail in many ways, and all mean the same here
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"cannot read {path}: it holds no dictionary but {type(content).__name__}")
    return content
