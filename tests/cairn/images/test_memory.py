"""A gigabyte is read within a fixed memory."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
import zarr

PEAK_MB = 200
READ = """
import sys
from pathlib import Path
from cairn.images import RawLayout, find_images, open_image

(source,) = find_images(Path(sys.argv[1]))
pixels = 0
with open_image(source, raw=RawLayout(4000, 3800, 35)) as image:
    for tile in image.tiles(image.bands, readers=2):
        pixels += tile.values.nbytes
        assert not tile.values[0, 0, 0]
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(pixels, int(peak.split()[1]) // 1024)
"""
SHAPE = (35, 4000, 3800)  # of uint16: 1.06 GB


def read_apart(folder: Path) -> tuple[int, int]:
    """Read a folder's image in a process of its own: bytes of pixels, peak resident memory in MB."""
    done = subprocess.run([sys.executable, "-c", READ, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pixels, peak = done.stdout.split()
    return int(pixels), int(peak)


def sparse_ome_tiff(folder: Path) -> None:
    tifffile.imwrite(folder / "a.ome.tif", shape=SHAPE, dtype=np.uint16, photometric="minisblack", ome=True)


def tiled_ome_tiff(folder: Path) -> None:
    blank = np.zeros((512, 512), np.uint16)
    tiles = (blank for _ in range(35 * 8 * 8))
    options = {
        "tile": (512, 512),
        "compression": "zstd",
        "photometric": "minisblack",
        "ome": True,
        "buffersize": 1 << 24,
    }
    tifffile.imwrite(folder / "a.ome.tif", tiles, shape=SHAPE, dtype=np.uint16, **options)


def one_strip_a_page(folder: Path) -> None:
    with tifffile.TiffWriter(folder / "a.tif", bigtiff=True) as writer:
        for _ in range(35):
            writer.write(np.zeros(SHAPE[1:], np.uint16), compression="deflate", rowsperstrip=SHAPE[1], metadata=None)


def raw(folder: Path) -> None:
    with (folder / "a.fw").open("wb") as file:
        file.truncate(int(np.prod(SHAPE)) * 2)


def ome_zarr(folder: Path) -> None:
    group = zarr.open_group(folder / "a.zarr", mode="w", zarr_format=3)
    group.attrs["ome"] = {"multiscales": [{"axes": [{"name": a} for a in "cyx"], "datasets": [{"path": "0"}]}]}
    array = group.create_array("0", shape=SHAPE, chunks=(1, 512, 512), dtype=np.uint16, fill_value=1)
    for y in range(0, SHAPE[1], 512):
        array[:, y : y + 512] = 0


def nifti(folder: Path, name: str = "a.nii") -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((1024, 1024, 510))
    header["vox_offset"], header["magic"] = 352, b"n+1"
    with (folder / name).open("wb") as file:
        file.write(header.binaryblock)
        file.truncate(352 + 1024 * 1024 * 510 * 2)


@pytest.mark.slow
@pytest.mark.parametrize("write", [sparse_ome_tiff, tiled_ome_tiff, one_strip_a_page, raw, ome_zarr, nifti])
def test_a_gigabyte_is_read_within_200_megabytes(tmp_path: Path, write: object) -> None:
    assert callable(write)
    write(tmp_path)
    pixels, peak = read_apart(tmp_path)
    assert pixels >= 1_000_000_000
    assert peak < PEAK_MB
