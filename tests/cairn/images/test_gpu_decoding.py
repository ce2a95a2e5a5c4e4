"""Who decodes JPEG 2000 changes no value. Another decoder plays the GPU's part, and nvImageCodec where it is there."""

import logging
import sys
from collections.abc import Callable
from typing import Any

import imagecodecs
import numpy as np
import pytest

from cairn.images import open_image
from cairn.images.gpu_decoding import GpuDecoder, Values, by_nvimgcodec, gpu_decoder, lossless

SHAPE = (50, 70)


def grey(bits: int = 12, *, signed: bool = False) -> Values:
    least = -(2 ** (bits - 1)) if signed else 0
    return np.random.default_rng(bits).integers(least, least + 2**bits, SHAPE).astype("i2" if signed else "u2")


def encoded(values: Values, bits: int = 12, **more: object) -> bytes:
    options = {"level": 0, "reversible": True, "codecformat": "j2k", "bitspersample": bits} | more
    return imagecodecs.jpeg2k_encode(values, **options)


class Other:
    """Another decoder, which is told what to do from a call on."""

    def __init__(self, way: Callable[[Values], Any] = lambda values: values, begin: int = 0) -> None:
        self.way, self.begin, self.calls = way, begin, 0

    def __call__(self, data: bytes) -> Values | None:
        values = imagecodecs.jpeg2k_decode(data)
        self.calls += 1
        return self.way(values) if self.calls > self.begin else values


def fails(_: Values) -> None:
    raise RuntimeError("out of memory")


def read(source: Any, gpu: GpuDecoder | None) -> Values:
    with open_image(source, gpu=gpu) as image:
        return np.concatenate([tile.values for tile in image.tiles(image.bands, readers=2)])


def test_a_series_without_loss_is_decoded_by_the_gpu_to_the_same_values(make: Callable[..., Any]) -> None:
    made = make("dicom-jpeg2000")
    other = Other()
    np.testing.assert_array_equal(read(made.source, GpuDecoder(other)), made.values[:, 0])
    assert other.calls == len(made.values)


FAILURES = [
    (fails, "failed (RuntimeError)"),
    (lambda _: None, "has no decoder"),
    (lambda values: values.astype(np.int32), "gave int32"),
    (lambda values: values[:-1], "gave uint16(69, 90)"),
]
OTHER_VALUES = (lambda values: values ^ (np.arange(90) == 0), "gave other values")


@pytest.mark.parametrize(
    ("way", "says", "begin"), [(*one, begin) for one in FAILURES for begin in (0, 1)] + [(*OTHER_VALUES, 0)]
)
def test_whatever_the_gpu_s_decoder_does_the_cpu_s_values_come_and_one_warning(
    make: Callable[..., Any], caplog: pytest.LogCaptureFixture, way: Callable[[Values], Any], says: str, begin: int
) -> None:
    made = make("dicom-jpeg2000")
    other = Other(way, begin)
    gpu = GpuDecoder(other)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            np.testing.assert_array_equal(read(made.source, gpu), made.values[:, 0])
    (record,) = caplog.records
    assert says in record.getMessage()
    assert other.calls <= begin + 2  # of two readers that asked at once


@pytest.mark.parametrize(
    "data",
    [
        encoded(grey(), reversible=False, level=30),
        encoded(grey())[:-2],
        encoded(grey())[:24] + (32).to_bytes(4, "big") + encoded(grey())[28:],
        encoded(np.stack([grey()] * 3, axis=-1)),
        encoded(grey(), codecformat="jp2"),
        encoded(grey())[:60],
        b"",
    ],
    ids=["irreversible", "cut off", "tiles", "colour", "boxes", "header", "empty"],
)
def test_what_is_not_sure_to_be_without_loss_is_not_given_to_the_gpu(data: bytes) -> None:
    other, expected = Other(), grey()
    assert lossless(data, np.dtype("u2"), 12) is None
    assert GpuDecoder(other)(data, np.dtype("u2"), 12, lambda: expected) is expected
    assert other.calls == 0


@pytest.mark.parametrize(("dtype", "bits"), [("u2", 16), ("i2", 12), ("u2", 11)])
def test_a_codestream_of_other_bits_than_the_file_says_is_the_cpu_s(dtype: str, bits: int) -> None:
    other, expected = Other(), grey()
    assert GpuDecoder(other)(encoded(grey()), np.dtype(dtype), bits, lambda: expected) is expected
    assert other.calls == 0


def test_without_the_library_there_is_no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.nvimgcodec", None)
    assert gpu_decoder() is None


KINDS = [(8, False), (12, False), (16, False), (12, True), (16, True)]


def check_equal(gpu: GpuDecoder, bits: int, *, signed: bool) -> bool:
    """Compare twice; return whether the second time it was not the CPU that decoded."""
    values = grey(bits, signed=signed)
    if bits == 8:
        values = values.astype("u1")
    data = encoded(values, bits)
    for _ in range(2):
        np.testing.assert_array_equal(gpu(data, values.dtype, bits, values.copy), values)
    return gpu.verdicts[bits, signed]


@pytest.mark.parametrize(("bits", "signed"), KINDS)
def test_nvimagecodec_on_the_cpu_gives_the_same_values(bits: int, signed: bool) -> None:
    library = pytest.importorskip("nvidia.nvimgcodec")
    decode = by_nvimgcodec(library, library.NVIMGCODEC_DEVICE_CPU_ONLY, [library.CPU_ONLY])
    assert check_equal(GpuDecoder(decode), bits, signed=signed) != signed  # it has no decoder of signed values there


@pytest.mark.gpu
@pytest.mark.parametrize(("bits", "signed"), KINDS)
def test_nvimagecodec_on_a_card_gives_the_same_values(bits: int, signed: bool) -> None:
    pytest.importorskip("nvidia.nvimgcodec")
    gpu = gpu_decoder()
    assert gpu is not None
    assert check_equal(gpu, bits, signed=signed)
