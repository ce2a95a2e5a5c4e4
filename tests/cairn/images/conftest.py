"""Writers of a small image in every format, by the formats' own libraries."""

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import tifffile
import zarr
from PIL import Image as Pillow
from pydicom.encaps import encapsulate
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, JPEG2000Lossless, generate_uid

from cairn.images import ImageSource, RawLayout, find_images, open_image

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Form:
    """A way to write an image: `write(folder, values[z, band, y, x])` makes one image in the folder."""

    write: Callable[[Path, Array], None]
    dtype: str
    bands: tuple[str, ...]
    depth: int = 1
    pixel_size_um: float | None = None
    checked: bool = False  # whether a checksum guards the pixels


def ome(name: str = "a.ome.tif", **options: object) -> Callable[[Path, Array], None]:
    def write(folder: Path, values: Array) -> None:
        depth = values.shape[0]
        metadata = {
            "axes": "CYX" if depth == 1 else "ZCYX",
            "Channel": {"Name": ["DNA", "CD45", "CD3"]},
            "PhysicalSizeX": 0.5,
            "PhysicalSizeY": 0.5,
        }
        about = {"photometric": "minisblack", "metadata": metadata, "ome": True} | options
        tifffile.imwrite(folder / name, values[0] if depth == 1 else values, **about)

    return write


def ome_pyramid(folder: Path, values: Array) -> None:
    with tifffile.TiffWriter(folder / "a.ome.tif", bigtiff=True) as writer:
        about = {"photometric": "minisblack", "tile": (32, 32), "compression": "zstd"}
        metadata = {"axes": "CYX", "Channel": {"Name": ["DNA", "CD45", "CD3"]}}
        writer.write(values[0], subifds=2, metadata=metadata, **about)
        writer.write(values[0, :, ::2, ::2], subfiletype=1, **about)
        writer.write(values[0, :, ::4, ::4], subfiletype=1, **about)


def pages(folder: Path, values: Array) -> None:
    tifffile.imwrite(folder / "a.tif", values[0], photometric="minisblack", compression="lzw", predictor=True)


def interleaved(folder: Path, values: Array) -> None:
    tifffile.imwrite(folder / "a.tif", np.moveaxis(values[0], 0, -1), photometric="minisblack", planarconfig="contig")


def interleaved_tiles(folder: Path, values: Array) -> None:
    whole = np.moveaxis(values[0], 0, -1)
    tifffile.imwrite(folder / "a.tif", whole, photometric="rgb", compression="deflate", tile=(16, 48))


def separate(folder: Path, values: Array) -> None:
    tifffile.imwrite(folder / "a.tif", values[0], photometric="minisblack", planarconfig="separate", tile=(32, 16))


def imagej(folder: Path, values: Array) -> None:
    labels = ["DNA", "CD45", "CD3"] * len(values)
    tifffile.imwrite(folder / "a.tif", values, imagej=True, metadata={"axes": "ZCYX", "Labels": labels})


def named_pages(folder: Path, values: Array) -> None:
    with tifffile.TiffWriter(folder / "a.tif") as writer:
        for name, plane in zip(("DNA", "CD45", "CD3"), values[0], strict=True):
            writer.write(plane, extratags=[(285, 2, 0, name, True)], metadata=None, compression="packbits")


def akoya_page(kind: str, name: str, marker: str = "") -> str:
    biomarker = f"<Biomarker>{marker}</Biomarker>" if marker else ""
    return (
        '<?xml version="1.0" encoding="utf-8"?><PerkinElmer-QPI-ImageDescription>'
        f"<ImageType>{kind}</ImageType><Name>{name}</Name>{biomarker}</PerkinElmer-QPI-ImageDescription>"
    )


def qptiff(folder: Path, values: Array) -> None:
    about = {"metadata": None, "resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(folder / "a.qptiff", bigtiff=True) as writer:
        for i, plane in enumerate(values[0]):
            text = akoya_page("FullResolution", f"Opal {i}", ("DNA", "CD45", "CD3")[i])
            writer.write(plane, description=text, tile=(32, 32), compression="lzw", **about)
        writer.write(np.zeros((9, 9, 3), np.uint8), description=akoya_page("Thumbnail", "RGB"), **about)
        for i, plane in enumerate(values[0]):
            text = akoya_page("ReducedResolution", f"Opal {i}", ("DNA", "CD45", "CD3")[i])
            writer.write(plane[::2, ::2], description=text, subfiletype=1, **about)


def component_data(folder: Path, values: Array) -> None:
    about = {"metadata": None, "resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(folder / "M1_[1,2]_component_data.tif") as writer:
        for name, plane in zip(("DAPI", "CD45 (Opal 570)", "Autofluorescence"), values[0], strict=True):
            writer.write(plane, description=akoya_page("FullResolution", name), compression="lzw", **about)
        writer.write(np.zeros((9, 9, 3), np.uint8), description=akoya_page("Thumbnail", "RGB"), **about)


def channel_folder(folder: Path, values: Array) -> None:
    (folder / "Point1").mkdir()
    for name, plane in zip(("CD3", "CD45", "DNA"), values[0], strict=True):
        tifffile.imwrite(folder / "Point1" / f"{name}.tif", plane, compression="deflate")


def raw(folder: Path, values: Array) -> None:
    (folder / "a.fw").write_bytes(np.moveaxis(values[0], 0, -1).astype("<u2").tobytes())


def ome_zarr(version: str, chunks: tuple[int, ...]) -> Callable[[Path, Array], None]:
    def write(folder: Path, values: Array) -> None:
        group = zarr.open_group(folder / "a.ome.zarr", mode="w", zarr_format=3 if version == "0.5" else 2)
        axes = [{"name": "c", "type": "channel"}] + [
            {"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"
        ]
        scale = {"type": "scale", "scale": [1.0, 1.0, 0.5, 0.5]}
        about = {
            "multiscales": [{"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": [scale]}]}],
            "omero": {"channels": [{"label": name} for name in ("DNA", "CD45", "CD3")]},
        }
        group.attrs.update({"ome": about | {"version": "0.5"}} if version == "0.5" else about)
        whole = values.transpose(1, 0, 2, 3)
        array = group.create_array("0", shape=whole.shape, chunks=chunks, dtype=whole.dtype)
        array[:] = whole

    return write


def nifti(name: str) -> Callable[[Path, Array], None]:
    def write(folder: Path, values: Array) -> None:
        image = nibabel.Nifti1Image(values.transpose(3, 2, 0, 1), np.diag([0.5, 0.5, 2.0, 1.0]))
        image.header.set_xyzt_units("mm")
        nibabel.save(image, folder / name)

    return write


def png(folder: Path, values: Array) -> None:
    Pillow.fromarray(np.moveaxis(values[0], 0, -1)).save(folder / "a.png")


def grey_png(folder: Path, values: Array) -> None:
    Pillow.fromarray(values[0, 0]).save(folder / "a.png")


def deep_png(folder: Path, values: Array) -> None:
    import imagecodecs

    (folder / "a.png").write_bytes(imagecodecs.png_encode(np.ascontiguousarray(np.moveaxis(values[0], 0, -1))))


def ct_slice(values: Array, z: int, series: str) -> pydicom.FileDataset:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = pydicom.FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    one.SeriesInstanceUID, one.Modality, one.InstanceNumber = series, "CT", 1
    one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    one.ImagePositionPatient = [0, 0, 2.5 * z]
    one.PixelSpacing = [0.5, 0.5]
    one.Rows, one.Columns = values.shape
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 8 * values.dtype.itemsize
    one.HighBit, one.PixelRepresentation = one.BitsStored - 1, int(values.dtype.kind == "i")
    one.PixelData = values.tobytes()
    one["PixelData"].VR = "OW"
    return one


def ct(compressed: bool = False) -> Callable[[Path, Array], None]:
    def write(folder: Path, values: Array) -> None:
        series = generate_uid()
        (folder / "scan").mkdir()
        for z in range(len(values)):
            one = ct_slice(values[z, 0], z, series)
            if compressed:
                one.compress(JPEG2000Lossless)
            # Names run against positions: the order must come from the header.
            one.save_as(folder / "scan" / f"IM{len(values) - z:03d}.dcm", enforce_file_format=True)

    return write


def slide_dataset(values: Array, tile: int) -> pydicom.FileDataset:
    """Make a brightfield slide of one level; values uint8[3, h, w]."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    _, height, width = values.shape
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = UID("1.2.840.10008.5.1.4.1.1.77.1.6")
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = JPEG2000Lossless
    one = pydicom.FileDataset("", {}, preamble=b"\0" * 128, file_meta=meta)
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID", "DimensionOrganizationUID"):
        setattr(one, keyword, generate_uid())
    one.Modality, one.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    one.Rows = one.Columns = tile
    one.TotalPixelMatrixRows, one.TotalPixelMatrixColumns = height, width
    one.ImagedVolumeWidth, one.ImagedVolumeHeight, one.ImagedVolumeDepth = width * 0.0005, height * 0.0005, 0.001
    one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
    one.BitsAllocated = one.BitsStored = 8
    one.HighBit, one.PixelRepresentation = 7, 0
    one.DimensionOrganizationType = "TILED_FULL"
    one.FocusMethod, one.ExtendedDepthOfField = "AUTO", "NO"
    one.SpecimenLabelInImage, one.BurnedInAnnotation, one.LossyImageCompression = "NO", "NO", "00"
    one.VolumetricProperties, one.TotalPixelMatrixFocalPlanes, one.NumberOfOpticalPaths = "VOLUME", 1, 1
    one.InstanceNumber, one.ContainerIdentifier = 1, "x"
    origin = Dataset()
    origin.XOffsetInSlideCoordinateSystem = origin.YOffsetInSlideCoordinateSystem = 0.0
    one.TotalPixelMatrixOriginSequence = [origin]
    one.ImageOrientationSlide = [0, 1, 0, 1, 0, 0]
    measures = Dataset()
    measures.PixelSpacing, measures.SliceThickness = [0.0005, 0.0005], 0.001
    shared = Dataset()
    shared.PixelMeasuresSequence = [measures]
    one.SharedFunctionalGroupsSequence = [shared]
    light = Dataset()
    light.OpticalPathIdentifier = "0"
    one.OpticalPathSequence = [light]
    frames = []
    import imagecodecs

    for y in range(0, height, tile):
        for x in range(0, width, tile):
            block = np.zeros((tile, tile, 3), np.uint8)
            part = np.moveaxis(values[:, y : y + tile, x : x + tile], 0, -1)
            block[: part.shape[0], : part.shape[1]] = part
            frames.append(imagecodecs.jpeg2k_encode(block, level=0, codecformat="j2k", mct=False))
    one.NumberOfFrames = len(frames)
    one.PixelData = encapsulate(frames)
    one["PixelData"].VR = "OB"
    return one


def slide(folder: Path, values: Array) -> None:
    (folder / "slide").mkdir()
    slide_dataset(values[0], 32).save_as(folder / "slide" / "level0.dcm", enforce_file_format=True)


NAMED = ("DNA", "CD45", "CD3")
RGB = ("R", "G", "B")
PLAIN = ("0", "1", "2")

FORMS = {
    "ome-tiff": Form(ome(), "u2", NAMED, pixel_size_um=0.5),
    "ome-tiff-big-endian": Form(ome(byteorder=">", tile=(32, 16)), "u2", NAMED, pixel_size_um=0.5),
    "ome-tiff-big-endian-strips": Form(ome(byteorder=">", rowsperstrip=5), "f4", NAMED, pixel_size_um=0.5),
    "ome-tiff-tiles": Form(ome(tile=(16, 32)), "i2", NAMED, pixel_size_um=0.5),
    "ome-tiff-deflate": Form(ome(compression="deflate", predictor=True, rowsperstrip=7), "u2", NAMED, 1, 0.5, True),
    "ome-tiff-zstd-stack": Form(ome(compression="zstd", tile=(32, 32)), "u2", NAMED, 4, 0.5),
    "ome-tiff-lzw-float": Form(ome(compression="lzw"), "f4", NAMED, pixel_size_um=0.5),
    "ome-tiff-big": Form(ome("a.ome.btf", bigtiff=True), "u4", NAMED, pixel_size_um=0.5),
    "ome-tiff-pyramid": Form(ome_pyramid, "u2", NAMED),
    "tiff-pages": Form(pages, "u2", PLAIN),
    "tiff-named-pages": Form(named_pages, "u1", NAMED),
    "tiff-interleaved": Form(interleaved, "u2", PLAIN),
    "tiff-rgb-tiles": Form(interleaved_tiles, "u1", RGB, checked=True),
    "tiff-separate": Form(separate, "f8", PLAIN),
    "tiff-imagej": Form(imagej, "u2", NAMED, 3),
    "tiff-folder": Form(channel_folder, "u1", ("CD3", "CD45", "DNA"), checked=True),
    "qptiff": Form(qptiff, "u1", NAMED, pixel_size_um=0.5),
    "component-data": Form(component_data, "f4", ("DAPI", "CD45 (Opal 570)", "Autofluorescence"), pixel_size_um=0.5),
    "raw": Form(raw, "u2", PLAIN),
    "ome-zarr-0.4": Form(ome_zarr("0.4", (1, 1, 32, 32)), "u2", NAMED, 2, 0.5),
    "ome-zarr-0.5": Form(ome_zarr("0.5", (2, 1, 16, 48)), "f4", NAMED, 2, 0.5),
    "nifti": Form(nifti("a.nii"), "i2", PLAIN, 3, 500.0),
    "nifti-gz": Form(nifti("a.nii.gz"), "f4", PLAIN, 3, 500.0, True),
    "png": Form(png, "u1", RGB, checked=True),
    "png-grey": Form(grey_png, "u1", ("grey",), checked=True),
    "png-grey-16": Form(grey_png, "u2", ("grey",), checked=True),
    "png-16": Form(deep_png, "u2", RGB, checked=True),
    "dicom": Form(ct(), "i2", ("CT",), 3, 500.0),
    "dicom-jpeg2000": Form(ct(compressed=True), "u2", ("CT",), 3, 500.0),
    "dicom-slide": Form(slide, "u1", RGB, pixel_size_um=0.5),
}
LAYOUT = RawLayout(70, 90, 3)


@dataclass(frozen=True)
class Made:
    """An image on the disk and its pixels."""

    form: Form
    folder: Path
    values: Array

    @property
    def source(self) -> ImageSource:
        (found,) = find_images(self.folder)
        return found

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file())


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Made]:
    """Write an image of 70 × 90 pixels in a form of FORMS, its values random over the dtype's whole range."""

    def made(name: str, height: int = 70, width: int = 90) -> Made:
        form = FORMS[name]
        folder = tmp_path / name
        folder.mkdir()
        dtype = np.dtype(form.dtype)
        generator = np.random.default_rng(7)
        bits = generator.integers(0, 256, (form.depth, len(form.bands), height, width, dtype.itemsize), np.uint8)
        values = bits.view(dtype)[..., 0] if dtype.kind != "f" else generator.normal(size=bits.shape[:4]).astype(dtype)
        form.write(folder, values)
        return Made(form, folder, values)

    return made


def read_all(source: ImageSource, bands: Sequence[str] = (), size: int = 512, readers: int = 0) -> Array:
    """Read an image's tiles into values[z, band, y, x], checking that each pixel comes once."""
    with open_image(source, raw=LAYOUT) as image:
        wanted = tuple(bands) or image.bands
        out = np.zeros((image.depth, len(wanted), image.height, image.width), image.dtype)
        seen = np.zeros((image.depth, image.height, image.width), np.int64)
        for tile in image.tiles(wanted, size, readers=readers):
            count, h, w = tile.values.shape
            assert count == len(wanted)
            assert tile.values.dtype == image.dtype
            assert tile.values.flags.c_contiguous
            at = (tile.z, slice(tile.y, tile.y + h), slice(tile.x, tile.x + w))
            out[at[0], :, at[1], at[2]] = tile.values
            seen[at] += 1
        assert np.all(seen == 1)
    return out


@pytest.fixture(params=sorted(FORMS))
def form_name(request: pytest.FixtureRequest) -> str:
    """Return the name of each form in turn."""
    return str(request.param)


@pytest.fixture
def read() -> Callable[..., Array]:
    """Return `read_all`."""
    return read_all


def recompress(path: Path) -> None:
    """Write a .gz file anew."""
    path.write_bytes(gzip.compress(gzip.decompress(path.read_bytes())))
