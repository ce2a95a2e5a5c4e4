"""The array work of a tally, once per backend: `sketch_*` and `pixels_*`; the numpy ones are the definition.

A backend is a value that is passed in, never a global; only the one asked for is imported.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from cairn.errors import ConfigError, DeviceError

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


def _same(table: Any) -> Any:
    return table


def _unheard(error: DeviceError) -> None:
    """Do nothing: a backend without a GPU has none that could fail."""


@dataclass(frozen=True)
class Kernels:
    """One backend's functions; what each does is said in `sketch_numpy` and `pixels_numpy`, the definitions.

    hold           puts a sketch where `estimate` finds it fastest, for many calls
    device_tables  makes a `cupy_tables.DeviceTables`, or None where the GPU failed; None: the backend has no GPU
    cpu            what goes on when a GPU fails
    failed         is told that it has
    """

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
    hold: Callable[[Any], Any] = _same
    device_tables: Callable[..., Any] | None = None
    cpu: "Kernels | None" = None
    failed: Callable[[DeviceError], None] = _unheard


def _warn(sentence: str) -> None:
    warnings.warn(sentence, RuntimeWarning, stacklevel=2)


def load(name: Backend, warn: Callable[[str], None] = _warn) -> Kernels:
    """Import a backend and bundle its functions; behind a GPU's stand those of the CPU.

    warn  is told when the GPU fails and the CPU goes on
    Raises ConfigError when the backend is unknown or cannot be imported.
    """
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
    if name != "cupy":
        return _bundle(name, sketch, pixels)
    guarded = import_module("cairn.kernels.fallback").guarded
    tables = import_module("cairn.kernels.cupy_tables").DeviceTables
    gpu = replace(_bundle(name, sketch, pixels), hold=sketch.hold, device_tables=tables)
    found: Kernels = guarded(gpu, load("numba"), warn)
    return found


def best() -> tuple[Backend, str]:
    """Choose this machine's fastest backend; beside it what a person should know, where CuPy is there without a GPU."""
    if find_spec("cupy") is None:
        return "numba", ""
    try:
        cards = import_module("cairn.kernels.cupy_").cards()
    except Exception as error:  # noqa: BLE001 - CuPy's errors are classes of modules that may not be importable here
        return "numba", f"CuPy is installed but no GPU can be used ({type(error).__name__}), so the CPU counts"
    if not cards:
        return "numba", "CuPy is installed but no GPU of a supported kind is there, so the CPU counts"
    return "cupy", ""


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
