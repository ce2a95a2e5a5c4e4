"""Greyscale JPEG 2000 without loss, decoded by an NVIDIA GPU where nvImageCodec is installed; docs/adr/0011.

Counts must not depend on who decodes. Without loss the inverse transform is of whole numbers (ISO/IEC 15444-1, the 5-3
wavelet), so all decoders give the same values; of what is not sure to be of that kind, nothing is given to the GPU.
"""

import logging
import struct
from collections.abc import Callable, Sequence
from importlib import import_module
from threading import Lock
from typing import Any, NamedTuple, TypeAlias, final

import numpy as np
import numpy.typing as npt

Values: TypeAlias = npt.NDArray[Any]

SOC, SIZ, COD, COC, SOD, EOC = (bytes([0xFF, code]) for code in (0x4F, 0x51, 0x52, 0x53, 0x93, 0xD9))  # markers, A.2
REVERSIBLE = 1

# One codestream -> values[h, w], None where the library has no decoder for it.
Decode: TypeAlias = Callable[[bytes], Values | None]


class Head(NamedTuple):
    """What a codestream's main header says of one component; ISO/IEC 15444-1, A.5.1 and A.6.1."""

    height: int
    width: int
    bits: int
    signed: bool


@final
class GpuDecoder:
    """Decodes on a GPU what the CPU would decode to the same bits; safe to use from several threads.

    The first codestream of each kind is decoded by both. After a failure or another value, the CPU decodes that kind.

    verdicts  (bits, signed) -> whether the GPU is believed
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._lock = Lock()  # nvImageCodec does not say that several threads may use a decoder
        self.verdicts: dict[tuple[int, bool], bool] = {}

    def __call__(self, data: bytes, dtype: np.dtype[Any], bits: int, plain: Callable[[], Values]) -> Values:
        """Return a codestream's values[h, w], of a dtype in which so many bits are used, as `plain` would.

        Raises what `plain` raises.
        """
        if (head := lossless(data, dtype, bits)) is None:
            return plain()
        kind = head.bits, head.signed
        believed = self.verdicts.get(kind)
        if believed is False:
            return plain()
        found = self._found(data, head, dtype)
        if believed and not isinstance(found, str):
            return found
        expected = plain()
        if not isinstance(found, str) and not np.array_equal(found, expected):
            found = "gave other values"
        with self._lock:
            before = self.verdicts.get(kind)
            self.verdicts[kind] = before is not False and not isinstance(found, str)
        if before is not False and isinstance(found, str):
            logging.getLogger(__name__).warning("nvImageCodec %s; the CPU decodes JPEG 2000 of %d bits", found, bits)
        return expected

    def _found(self, data: bytes, head: Head, dtype: np.dtype[Any]) -> Values | str:
        """Return the GPU's values, or what is wrong with them."""
        try:
            with self._lock:
                found = self._decode(data)
        except Exception as error:  # noqa: BLE001 - the library's, the driver's, memory's
            return f"failed ({type(error).__name__})"
        if found is None:
            return "has no decoder"
        if (found.shape, found.dtype) != ((head.height, head.width), dtype):
            return f"gave {found.dtype}{found.shape}"
        return found


def gpu_decoder() -> GpuDecoder | None:
    """Return this machine's decoder; None without nvImageCodec or a GPU."""
    try:
        library = import_module("nvidia.nvimgcodec")
        kinds = (library.GPU_ONLY, library.HYBRID_CPU_GPU)
        return GpuDecoder(by_nvimgcodec(library, library.NVIMGCODEC_DEVICE_CURRENT, kinds))
    except Exception:  # noqa: BLE001 - not installed, or nothing that it could use
        return None


def by_nvimgcodec(library: object, device: int, kinds: Sequence[object]) -> Decode:
    """Return nvImageCodec's way to decode on a device, by back ends of such kinds. Raises RuntimeError without one."""
    lib: Any = library
    decoder = lib.Decoder(device_id=device, backends=[lib.Backend(kind) for kind in kinds])
    unchanged = lib.DecodeParams(allow_any_depth=True, color_spec=lib.ColorSpec.UNCHANGED)

    def decode(data: bytes) -> Values | None:
        found = decoder.decode(lib.CodeStream(data), params=unchanged)
        return None if found is None else np.asarray(found.cpu())[..., 0]

    return decode


def lossless(data: bytes, dtype: np.dtype[Any], bits: int) -> Head | None:
    """Read a codestream's headers.

    dtype, bits  what the file says that its values are
    returns      None unless it says the same, and is whole, one tile of one component, its transform reversible
    """
    try:
        start, size, _, width, height, *places, components = struct.unpack_from(">4sHHIIIIIIIIH", data)
        depth, across, down = struct.unpack_from(">BBB", data, 42)
        one_tile = places[2] >= width and places[3] >= height and not any((*places[:2], *places[4:]))
        if start != SOC + SIZ or (components, across, down, one_tile) != (1, 1, 1, True):
            return None
        if not data.rstrip(b"\0").endswith(EOC):  # DICOM fills up to even length
            return None
        at, transforms = 4 + size, []
        while (code := data[at : at + 2]) != SOD:
            if code in {COD, COC}:
                transforms.append(data[at + 13] if code == COD else 0)
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    except (struct.error, IndexError):
        return None
    head = Head(height, width, (depth & 0x7F) + 1, bool(depth & 0x80))
    return head if transforms == [REVERSIBLE] and (head.signed, head.bits) == (dtype.kind == "i", bits) else None
