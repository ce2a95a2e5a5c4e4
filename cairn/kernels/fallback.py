"""A GPU's functions with the CPU's behind them: where the first fails, the second does the same work instead."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any

from cairn.errors import DeviceError
from cairn.kernels import Kernels

# Each changes its arguments only when it has all results, so that one that failed can be called again elsewhere.
GUARDED = ("update", "keys", "unit_histogram", "moments", "profile", "lookup")


@dataclass(frozen=True)
class _Held:
    """A sketch, and the same on the GPU."""

    here: Any
    there: Any


def guarded(gpu: Kernels, cpu: Kernels, warn: Callable[[str], None]) -> Kernels:
    """Let the CPU go on, from the first DeviceError of the GPU on; nothing is counted twice.

    warn  is told once, why
    """
    switch = _Switch(warn)

    def whichever(name: str) -> Any:
        first, second = getattr(gpu, name), getattr(cpu, name)
        return lambda *arguments: switch.call(lambda: first(*arguments), lambda: second(*arguments))

    def estimate(table: Any, keys: Any, seeds: Any) -> Any:
        held = table if isinstance(table, _Held) else _Held(table, table)
        return switch.call(lambda: gpu.estimate(held.there, keys, seeds), lambda: cpu.estimate(held.here, keys, seeds))

    def hold(table: Any) -> Any:
        return switch.call(lambda: _Held(table, gpu.hold(table)), lambda: table)

    def tables(*arguments: Any) -> Any:
        make = gpu.device_tables
        return switch.call(lambda: make(*arguments) if make else None, lambda: None)

    functions = {name: whichever(name) for name in GUARDED}
    return replace(gpu, **functions, estimate=estimate, hold=hold, device_tables=tables, cpu=cpu, failed=switch.off)


class _Switch:
    """Whether the GPU is still asked."""

    def __init__(self, warn: Callable[[str], None]) -> None:
        self._warn = warn
        self._lock = Lock()
        self._on = True

    def call(self, first: Callable[[], Any], second: Callable[[], Any]) -> Any:
        if self._on:
            try:
                return first()
            except DeviceError as error:
                self.off(error)
        return second()

    def off(self, error: DeviceError) -> None:
        """Ask the GPU no more."""
        with self._lock:
            if self._on:
                self._on = False
                self._warn(f"{error}; the CPU counts from here on")
