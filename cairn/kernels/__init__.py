"""The array work of a tally, once per backend: `sketch_*` and `pixels_*`; the numpy ones are the definition.

A backend is a value that is passed in, never a global; only the one asked for is imported.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cairn.errors import ConfigError

Backend = Literal["numpy", "numba", "cupy"]

_U64 = npt.NDArray[np.uint64]
_I64 = npt.NDArray[np.int64]
_F64 = npt.NDArray[np.float64]
_Levels = npt.NDArray[np.uint16]
_Projection = npt.NDArray[np.int32]
_Table = npt.NDArray[np.int32] | npt.NDArray[np.int64]


class _Update(Protocol):
    def __call__(self, table: _Table, keys: _U64, counts: _I64, seeds: _U64) -> None: ...


class _Scatter(Protocol):
    def __call__(self, table: _Table, keys: _U64, counts: _I64) -> None: ...


class _Estimate(Protocol):
    def __call__(self, table: _Table, keys: _U64, seeds: _U64) -> _I64: ...


class _Combine(Protocol):
    def __call__(
        self, keys: _U64, counts: _I64 | None, shift: int, cache: _U64, skip: int, out_keys: _U64, out_counts: _I64
    ) -> tuple[int, int]: ...


class _Drain(Protocol):
    def __call__(self, cache: _U64, out_keys: _U64, out_counts: _I64) -> int: ...


class _ToLevels(Protocol):
    def __call__(self, values: npt.NDArray[np.number], offset: float, scale: float) -> _Levels: ...


class _PixelKeys(Protocol):
    def __call__(
        self, levels: _Levels, projection: _Projection, min_norm: float, low: _F64, gain: _F64, radix: int
    ) -> _U64: ...


class _UnitHistogram(Protocol):
    def __call__(self, levels: _Levels, projection: _Projection, into: _I64) -> None: ...


class _Moments(Protocol):
    def __call__(self, levels: _Levels) -> tuple[_I64, _I64]: ...


class _Profile(Protocol):
    def __call__(self, levels: _Levels, clusters: npt.NDArray[np.uint8], counts: _I64, sums: _I64) -> None: ...


class _Lookup(Protocol):
    def __call__(self, keys: _U64, listed: _U64) -> _I64: ...


@dataclass(frozen=True)
class Kernels:
    """One backend's functions; what each does is said in `sketch_numpy` and `pixels_numpy`, the definitions."""

    name: Backend
    update: _Update
    scatter: _Scatter
    estimate: _Estimate
    combine: _Combine
    drain: _Drain
    to_levels: _ToLevels
    keys: _PixelKeys
    unit_histogram: _UnitHistogram
    moments: _Moments
    profile: _Profile
    lookup: _Lookup


def load(name: Backend) -> Kernels:
    """Import a backend and bundle its functions. Raises ConfigError when it is unknown or cannot be imported."""
    modules = {
        "numpy": ("cairn.kernels.sketch_numpy", "cairn.kernels.pixels_numpy"),
        "numba": ("cairn.kernels.sketch_numba", "cairn.kernels.pixels_numba"),
        "cupy": ("cairn.kernels.cupy_", "cairn.kernels.cupy_"),
    }
    if name not in modules:
        raise ConfigError(f"there is no backend {name!r}; choose one of {', '.join(modules)}")
    try:
        sketch, pixels = (import_module(module) for module in modules[name])
    except ImportError as error:
        raise ConfigError(
            f"the backend {name!r} cannot be imported ({error}); install it, or choose 'numba'"
        ) from error
    return _bundle(name, sketch, pixels)


def best() -> tuple[Backend, str]:
    """Choose this machine's fastest backend; beside it what a person should know, where CuPy is there without a GPU."""
    if find_spec("cupy") is None:
        return "numba", ""
    try:
        cards = import_module("cairn.kernels.cupy_").cards()
    except Exception as error:  # noqa: BLE001 - CuPy's errors are classes of modules that may not be importable here
        return "numba", f"CuPy is installed but no GPU can be used ({type(error).__name__}), so the CPU counts"
    return ("cupy", "") if cards else ("numba", "CuPy is installed but no GPU is there, so the CPU counts")


def _bundle(name: Backend, sketch: Any, pixels: Any) -> Kernels:
    return Kernels(
        name=name,
        update=sketch.update,
        scatter=sketch.scatter,
        estimate=sketch.estimate,
        combine=sketch.combine,
        drain=sketch.drain,
        to_levels=pixels.to_levels,
        keys=pixels.keys,
        unit_histogram=pixels.unit_histogram,
        moments=pixels.moments,
        profile=pixels.profile,
        lookup=pixels.lookup,
    )
