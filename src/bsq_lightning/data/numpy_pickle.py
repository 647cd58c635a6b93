"""Reads a pickle of numpy arrays without running anything that the file asks for."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np


class _Array(np.ndarray):
    """An array whose state a file may set. Numpy itself believes the file: raw bytes can become pointers to objects."""

    def __setstate__(self, state: Any) -> None:
        version, shape, dtype, order, content = state
        super().__setstate__((version, shape, _plain(dtype), order, content))


def _plain(dtype: np.dtype) -> np.dtype:
    """The same type of number or text, made anew: the file could go on to change its own."""
    if dtype.kind not in "biufSU":
        raise pickle.UnpicklingError(f"it holds an array of {dtype}, only numbers and text are read")
    if not dtype.itemsize:
        raise pickle.UnpicklingError("it holds an array of elements without a size, of which any number fits")
    return np.dtype(dtype.str)


def _empty(*_: Any) -> _Array:
    """What every pickled array begins as, whatever class, shape and type the file asks for."""
    return np.empty(0).view(_Array)


def _from_buffer(buffer: bytes, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> np.ndarray:
    """An array from its bytes, as numpy's function of this name makes it for protocol 5."""
    return np.frombuffer(buffer, _plain(dtype)).reshape(shape, order=order)


# Each name as numpy 1 and numpy 2 write it, and what it stands for here.
ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): None,  # only ever an argument, which is not used
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): str.encode,  # how Python 3 spells bytes in a file that Python 2 can read
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _empty for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class NumpyUnpickler(pickle._Unpickler):
    """An unpickler that knows plain containers, numbers, text and numpy arrays, and refuses all else.

    It is the one in Python: that in C makes a table as long as the largest number by which a file names an object, so
    that five bytes take 64 GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is refused") from None


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
