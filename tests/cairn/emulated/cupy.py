"""As much of CuPy as Cairn uses, on a card that the CPU emulates: arrays are NumPy's, kernels are compiled by g++.

Its arrays do not mix with the host's by accident, as CuPy's do not. `card` says what the card is, and makes it fail.
"""

import atexit
import ctypes
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from threading import Lock
from types import SimpleNamespace
from typing import Any

import numpy as np

HERE = Path(__file__).parent
BUILT = tempfile.mkdtemp()
atexit.register(shutil.rmtree, BUILT, ignore_errors=True)
FLAGS = ("-std=c++20", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-Wall", "-Werror", "-Wno-unknown-pragmas")

__version__ = "emulated"


class OutOfMemoryError(MemoryError):
    """What CuPy raises where the card's memory is used up."""


class CUDARuntimeError(RuntimeError):
    """What CuPy raises where the driver fails."""


class CompileException(Exception):
    """What CuPy raises where NVRTC refuses a source."""


@dataclass
class Card:
    """The emulated card, and how it fails."""

    number: int = 1
    capability: str = "90"
    multiprocessors: int = 2
    shared: int = 232448  # bytes a block may have
    cache: int = 24 * 2**8  # bytes; few, so that slots run out
    largest: int = 2**40  # bytes of an array at most; more is out of memory
    launches: int = 2**40  # after so many the card is gone
    compiler: bool = True


card = Card()
launched: list[str] = []


def _there() -> None:
    if card.launches < 0 or not card.number:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")


class ndarray(np.ndarray):  # noqa: N801 (CuPy's name)
    """An array in the card's memory."""

    def get(self, **_: Any) -> np.ndarray:
        _there()
        return np.array(self, subok=False)

    def set(self, values: np.ndarray, stream: Any = None) -> None:
        _there()
        assert type(values) is np.ndarray
        assert (values.dtype, values.shape) == (self.dtype, self.shape)
        np.copyto(self.view(np.ndarray), values)

    @property
    def data(self) -> Any:  # type: ignore[override]
        return SimpleNamespace(ptr=self.ctypes.data)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
        both = (*inputs, *kwargs.get("out", ()))
        if any(type(one) is np.ndarray and one.ndim for one in both):
            raise TypeError("an array of the host's was mixed with one of the card's; use get() or asarray()")
        plain = [one.view(np.ndarray) if isinstance(one, ndarray) else one for one in inputs]
        if "out" in kwargs:
            kwargs["out"] = tuple(one.view(np.ndarray) for one in kwargs["out"])
        found = getattr(ufunc, method)(*plain, **kwargs)
        return found.view(ndarray) if isinstance(found, np.ndarray) else found

    def __array_function__(self, function: Any, _types: Any, args: Any, kwargs: Any) -> Any:
        return _on_card(function, *args, **kwargs)

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")


def _new(array: np.ndarray) -> Any:
    _there()
    if array.nbytes > card.largest:
        raise OutOfMemoryError(f"Out of memory allocating {array.nbytes} bytes")
    return array.view(ndarray)


def _plain(value: Any) -> Any:
    if isinstance(value, ndarray):
        return value.view(np.ndarray)
    return type(value)(_plain(one) for one in value) if isinstance(value, tuple | list) else value


def _on_card(function: Any, *args: Any, **kwargs: Any) -> Any:
    found = function(*(_plain(one) for one in args), **{name: _plain(one) for name, one in kwargs.items()})
    if isinstance(found, tuple):
        return tuple(_new(one) for one in found)
    return _new(found) if isinstance(found, np.ndarray) else found


def _aligned(shape: Any, dtype: Any, filled: bool) -> np.ndarray:
    """Make an array that begins where cudaMalloc's do; nothing has set what is not filled."""
    dtype = np.dtype(dtype)
    size = int(np.prod(shape)) * dtype.itemsize
    if size > card.largest:
        raise OutOfMemoryError(f"Out of memory allocating {size} bytes")
    raw = np.full(size + 512, 0 if filled else 0xAB, np.uint8)
    start = -raw.ctypes.data % 512
    return raw[start : start + size].view(dtype).reshape(shape)


def empty(shape: Any, dtype: Any = float) -> Any:
    return _new(_aligned(shape, dtype, False))


def zeros(shape: Any, dtype: Any = float) -> Any:
    return _new(_aligned(shape, dtype, True))


def array(values: Any, dtype: Any = None) -> Any:
    values = _plain(values)
    found = _aligned(np.shape(values), dtype or np.asarray(values).dtype, False)
    found[...] = values
    return _new(found)


def asarray(values: Any, dtype: Any = None) -> Any:
    if isinstance(values, ndarray) and (dtype is None or values.dtype == dtype):
        return values
    return array(values, dtype)


def ascontiguousarray(values: Any) -> Any:
    return values if isinstance(values, ndarray) and values.flags.c_contiguous else array(values)


def __getattr__(name: str) -> Any:  # dtypes as they are, functions for arrays on the card
    found = getattr(np, name)
    return found if isinstance(found, type) or not callable(found) else lambda *a, **k: _on_card(found, *a, **k)


@cache
def _library(options: tuple[str, ...], code: str) -> ctypes.CDLL:
    folder = Path(tempfile.mkdtemp(dir=BUILT))
    (folder / "source.cu").write_text(code, encoding="utf-8")
    kernels = re.findall(r"__global__ void(?:\s*__launch_bounds__\([^)]*\))?[\s\\]*(\w+?)(_##NAME)?\(", code)
    names = [
        f"{name}_{kind}" if kind else name for name, each in kernels for kind in (("int32", "int64") if each else ("",))
    ]
    (folder / "names.inc").write_text("".join(f"EMULATE({name})\n" for name in names), encoding="utf-8")
    shape = [option for option in options if option.startswith("-D")]
    command = ["g++", *FLAGS, *shape, f"-I{folder}", HERE / "emulate_cuda.cpp", "-o", folder / "emulated.so"]
    subprocess.run(command, check=True)
    return ctypes.CDLL(str(folder / "emulated.so"))


class RawModule:
    """A source, compiled when a kernel is first started."""

    def __init__(self, code: str, options: tuple[str, ...] = ()) -> None:
        self.code, self.options = code, options

    def get_function(self, name: str) -> Any:
        return _Kernel(self, name)


class _Kernel:
    lock = Lock()  # one card, one block at a time

    def __init__(self, module: RawModule, name: str) -> None:
        self.module, self.name = module, name
        self._shared = 48 * 1024

    shared_size_bytes = 0

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if size > card.shared:
            raise CUDARuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument")
        self._shared = size

    def __call__(self, grid: Any, block: Any, args: Any, *, shared_mem: int = 0) -> None:
        _there()
        if not card.compiler:
            raise CompileException("nvrtc: error: invalid value for --gpu-architecture")
        assert shared_mem <= self._shared
        assert block[0] in range(32, 1025, 32)
        card.launches -= 1
        _there()
        with self.lock:
            library = _library(self.module.options, self.module.code)
            sizes = getattr(library, f"sizes_{self.name}")
            sizes.restype = ctypes.c_char_p
            values = [self._value(one, int(size) - 48) for one, size in zip(args, sizes(), strict=True)]
            pointers = (ctypes.c_void_p * len(values))(*(one.ctypes.data for one in values))
            grid = (*grid, 1)[:2]
            start = getattr(library, f"launch_{self.name}")
            sized = ctypes.c_size_t(shared_mem)
            assert start(*grid, block[0], sized, pointers, ctypes.c_size_t(len(values))) == 0
            launched.append(self.name)

    def _value(self, one: Any, size: int) -> np.ndarray:
        if isinstance(one, ndarray):
            assert one.flags.c_contiguous
            one = np.uint64(one.ctypes.data)
        assert isinstance(one, np.generic)
        assert one.itemsize == size, (self.name, one)
        return np.array([one])


class _Device:
    def __init__(self, number: int = 0) -> None:
        _there()
        self.compute_capability = card.capability
        self.attributes = {
            "MultiProcessorCount": card.multiprocessors,
            "MaxSharedMemoryPerBlockOptin": card.shared,
            "L2CacheSize": card.cache,
        }

    def synchronize(self) -> None:
        _there()


class _Stream:
    def __init__(self, **_: Any) -> None:
        _there()

    def synchronize(self) -> None:
        _there()

    def __enter__(self) -> "_Stream":
        return self

    def __exit__(self, *_: Any) -> None:
        pass


class _Event:
    def record(self, stream: Any = None) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        _there()


def _count() -> int:
    if not card.number:
        raise CUDARuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected")
    return card.number


def _pinned(size: int) -> bytearray:
    _there()
    return bytearray(size)


class _Random:
    @staticmethod
    def default_rng(seed: int) -> Any:
        drawn = np.random.default_rng(seed)
        return SimpleNamespace(integers=lambda *a, **k: _new(drawn.integers(*a, **k)))


random = _Random


def get_default_memory_pool() -> Any:
    return SimpleNamespace(free_all_blocks=lambda: None, used_bytes=lambda: 0, total_bytes=lambda: 0)


cuda = SimpleNamespace(
    Device=_Device,
    Stream=_Stream,
    Event=_Event,
    alloc_pinned_memory=_pinned,
    get_elapsed_time=lambda start, stop: (stop.at - start.at) * 1e3,
    runtime=SimpleNamespace(
        getDeviceCount=_count,
        getDevice=lambda: 0,
        getDeviceProperties=lambda _: {"name": b"emulated"},
        driverGetVersion=lambda: 0,
        runtimeGetVersion=lambda: 0,
        memGetInfo=lambda: (0, 0),
    ),
    memory=SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    compiler=SimpleNamespace(CompileException=CompileException),
)


@contextmanager
def failing(**how: Any) -> Iterator[None]:
    """Let the card fail, or be another, inside the block."""
    before = {name: getattr(card, name) for name in how}
    for name, value in how.items():
        setattr(card, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(card, name, value)
