"""DICOM as scanners write it: rescaled, compressed, several frames a file, in colour, slides in fluorescence."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import UID, JPEG2000Lossless, generate_uid

from cairn.errors import ImageError
from cairn.images import open_image


def change(made: Any, edit: Callable[[Any, int], None]) -> None:
    """Edit each file of a series, with its number in the order of the files."""
    for i, path in enumerate(made.files()):
        one = pydicom.dcmread(path)
        edit(one, i)
        one.save_as(path)


def test_whole_slopes_and_intercepts_give_exact_integers(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")

    def edit(one: Any, _: int) -> None:
        one.RescaleSlope, one.RescaleIntercept = 2, -1024

    change(made, edit)
    values = read(made.source)
    assert values.dtype == np.int32
    np.testing.assert_array_equal(values, made.values.astype(np.int32) * 2 - 1024)


def test_each_slice_has_its_own_slope(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")

    def edit(one: Any, i: int) -> None:
        one.RescaleSlope, one.RescaleIntercept = [0.5, 0.25, 2.0][i], 0

    change(made, edit)
    values = read(made.source)
    assert values.dtype == np.float64
    slopes = np.array([2.0, 0.25, 0.5])[:, None, None, None]  # the files run against the positions
    np.testing.assert_array_equal(values, made.values * slopes)


def test_without_positions_the_instance_number_orders(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")

    def edit(one: Any, i: int) -> None:
        del one.ImagePositionPatient
        one.InstanceNumber = 3 - i

    change(made, edit)
    np.testing.assert_array_equal(read(made.source), made.values)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        ("1.2.840.10008.1.2.4.70", lambda values: imagecodecs.ljpeg_encode(values, bitspersample=16)),
        ("1.2.840.10008.1.2.4.80", imagecodecs.jpegls_encode),
    ],
)
def test_lossless_jpeg_and_jpeg_ls_are_decoded(
    make: Callable[..., Any], read: Callable[..., Any], syntax: str, encode: Callable[..., bytes]
) -> None:
    made = make("dicom")

    def edit(one: Any, _: int) -> None:
        stored = np.frombuffer(one.PixelData, np.uint16).reshape(one.Rows, one.Columns)
        one.PixelData = encapsulate([bytes(encode(stored))])
        one["PixelData"].VR = "OB"
        one.file_meta.TransferSyntaxUID = UID(syntax)

    change(made, edit)
    np.testing.assert_array_equal(read(made.source), made.values)


@pytest.mark.parametrize(
    ("bits", "precision", "signed"), [(12, 12, 0), (16, 16, 0), (12, 12, 1), (16, 16, 1), (12, 16, 1)]
)
def test_jpeg_2000_without_loss_has_the_values_that_pydicom_gives(
    make: Callable[..., Any], read: Callable[..., Any], bits: int, precision: int, signed: int
) -> None:
    made = make("dicom")
    expected: dict[float, Any] = {}

    def edit(one: Any, _: int) -> None:
        stored = np.frombuffer(one.PixelData, np.uint16).reshape(one.Rows, one.Columns) >> (16 - bits)
        values = (stored.astype("i4") - 2 ** (bits - 1)).astype("i2") if signed else stored
        about = {"level": 0, "reversible": True, "codecformat": "j2k", "bitspersample": precision}
        one.PixelData = encapsulate([imagecodecs.jpeg2k_encode(values, **about)])
        one["PixelData"].VR = "OB"
        one.BitsStored, one.HighBit, one.PixelRepresentation = bits, bits - 1, signed
        one.file_meta.TransferSyntaxUID = JPEG2000Lossless
        expected[one.ImagePositionPatient[2]] = values

    change(made, edit)
    by_pydicom = {(one := pydicom.dcmread(path)).ImagePositionPatient[2]: one.pixel_array for path in made.files()}
    for z, (_, values) in enumerate(sorted(expected.items())):
        np.testing.assert_array_equal(read(made.source)[z, 0], values)
        np.testing.assert_array_equal(sorted(by_pydicom.items())[z][1], values)


def test_an_enhanced_file_orders_and_rescales_its_frames(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")
    paths = made.files()
    one = pydicom.dcmread(paths[0])
    for path in paths[1:]:
        path.unlink()
    one.NumberOfFrames = 3
    one.PixelData = made.values[[1, 2, 0], 0].tobytes()
    del one.ImagePositionPatient, one.ImageOrientationPatient
    one.PerFrameFunctionalGroupsSequence = []
    for z in (1, 2, 0):
        frame, plane, rescale = Dataset(), Dataset(), Dataset()
        plane.ImagePositionPatient = [0, 0, 2.5 * z]
        rescale.RescaleSlope, rescale.RescaleIntercept = z + 1, -5
        frame.PlanePositionSequence, frame.PixelValueTransformationSequence = [plane], [rescale]
        one.PerFrameFunctionalGroupsSequence.append(frame)
    shared, orientation = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    shared.PlaneOrientationSequence = [orientation]
    one.SharedFunctionalGroupsSequence = [shared]
    one.save_as(paths[0])
    slopes = np.arange(1, 4)[:, None, None, None]
    np.testing.assert_array_equal(read(made.source), made.values.astype(np.int32) * slopes - 5)


def test_colour_is_three_bands(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")
    colours = np.random.default_rng(0).integers(0, 255, (3, 70, 90, 3), np.uint8)

    def edit(one: Any, i: int) -> None:
        one.SamplesPerPixel, one.PhotometricInterpretation, one.PlanarConfiguration = 3, "RGB", 0
        one.BitsAllocated = one.BitsStored = 8
        one.HighBit, one.PixelRepresentation = 7, 0
        one.PixelData = colours[2 - i].tobytes()

    change(made, edit)
    with open_image(made.source) as image:
        assert image.bands == ("R", "G", "B")
    np.testing.assert_array_equal(read(made.source), colours.transpose(0, 3, 1, 2))


def test_slices_of_another_size_are_refused(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")

    def edit(one: Any, i: int) -> None:
        if i == 1:
            one.Rows, one.Columns = 35, 180

    change(made, edit)
    with pytest.raises(ImageError, match=r"IM002\.dcm: found Rows 35; expected 70 as in the series"):
        read(made.source)


def test_a_modality_table_is_refused(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")

    def edit(one: Any, _: int) -> None:
        one.ModalityLUTSequence = [Dataset()]

    change(made, edit)
    with pytest.raises(ImageError, match="modality look-up table"):
        read(made.source)


def test_patients_are_not_named_in_messages(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom")

    def edit(one: Any, i: int) -> None:
        one.PatientName, one.PatientID = "Roe^Jane", "471147"
        one.BitsAllocated = 12

    change(made, edit)
    with pytest.raises(ImageError) as caught:
        read(made.source)
    assert "Roe" not in str(caught.value)
    assert "471147" not in str(caught.value)


STAINS = ("DAPI", "CD45", "panCK", "CD3", "Ki67", "CD20")
PIXELS = np.random.default_rng(0).integers(0, 65535, (len(STAINS), 70, 90), np.uint16)


def fluorescent(one: Any, stains: Sequence[int], identifiers: Sequence[str]) -> None:
    """Make a slide's only file one of some of STAINS."""
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit = 15
    del one.PlanarConfiguration
    one.NumberOfOpticalPaths = len(stains)
    one.OpticalPathSequence = []
    frames = []
    for stain, identifier in zip(stains, identifiers, strict=True):
        path = Dataset()
        path.OpticalPathIdentifier, path.OpticalPathDescription = identifier, STAINS[stain]
        one.OpticalPathSequence.append(path)
        whole = np.zeros((96, 96), np.uint16)
        whole[:70, :90] = PIXELS[stain]
        blocks = whole.reshape(3, 32, 3, 32).swapaxes(1, 2).reshape(9, 32, 32)
        frames += [imagecodecs.jpeg2k_encode(block, level=0, codecformat="j2k") for block in blocks]
    one.NumberOfFrames = len(frames)
    one.PixelData = encapsulate(frames)
    one["PixelData"].VR = "OB"


def one_file_a_stain(path: Path, stains: Sequence[int], identifiers: Sequence[str]) -> None:
    """Put files of one stain each in the place of a slide's only file; their names run against their numbers."""
    for number, (stain, identifier) in enumerate(zip(stains, identifiers, strict=True)):
        one = pydicom.dcmread(path)
        fluorescent(one, [stain], [identifier])
        one.InstanceNumber = number + 1
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        one.save_as(path.with_name(f"stain{len(stains) - number}.dcm"))
    path.unlink()


# Six, and not in the order of the alphabet: an order out of a set would be right once in 720 processes.
def test_optical_paths_of_a_fluorescence_slide_are_bands_in_the_files_order(
    make: Callable[..., Any], read: Callable[..., Any]
) -> None:
    made = make("dicom-slide")
    change(made, lambda one, _: fluorescent(one, range(6), "953140"))
    with open_image(made.source) as image:
        assert image.bands == STAINS
    np.testing.assert_array_equal(read(made.source, STAINS)[0], PIXELS)
    np.testing.assert_array_equal(read(made.source, STAINS[::-1])[0], PIXELS[::-1])


def test_a_band_mapped_to_an_index_is_the_optical_path_in_that_place(
    make: Callable[..., Any], read: Callable[..., Any]
) -> None:
    made = make("dicom-slide")
    change(made, lambda one, _: fluorescent(one, range(6), "953140"))
    with open_image(made.source, bands={"nucleus": 0, "keratin": 2}) as image:
        (tile,) = image.tiles(["keratin", "nucleus"], 128)
    np.testing.assert_array_equal(tile.values, PIXELS[[2, 0]])


def test_optical_paths_in_a_file_each_come_in_the_order_of_instance_numbers(
    make: Callable[..., Any], read: Callable[..., Any]
) -> None:
    made = make("dicom-slide")
    one_file_a_stain(made.files()[0], range(6), "953140")
    with open_image(made.source) as image:
        assert image.bands == STAINS
    np.testing.assert_array_equal(read(made.source, STAINS)[0], PIXELS)


def test_optical_paths_of_one_identifier_are_refused_as_only_one_would_be_read(
    make: Callable[..., Any], read: Callable[..., Any]
) -> None:
    made = make("dicom-slide")
    one_file_a_stain(made.files()[0], [0, 1], "11")
    with pytest.raises(ImageError, match="several optical paths under one identifier"):
        read(made.source)


def test_an_identifier_given_twice_in_one_file_is_refused(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom-slide")
    change(made, lambda one, _: fluorescent(one, [0, 1], "11"))
    with pytest.raises(ImageError, match="several optical paths under one identifier"):
        read(made.source)


def test_a_slide_with_a_file_that_cannot_be_read_is_refused(make: Callable[..., Any], read: Callable[..., Any]) -> None:
    made = make("dicom-slide")
    source = made.source
    (path,) = made.files()
    broken = path.with_name("level1.dcm")
    broken.write_bytes(path.read_bytes()[:2000])
    both = type(source)(source.id, (path, broken), source.format)
    with pytest.raises(ImageError, match="cannot be read"):
        read(both)


@pytest.mark.parametrize(
    ("places", "expected"), [((0.0, 2.5, 5.0), (2500.0, 700.0, 600.0)), ((0.0, 2.5, 9.0), None), (None, None)]
)
def test_a_series_has_a_spacing_where_its_slices_are_evenly_apart(
    make: Callable[..., Any], places: tuple[float, ...] | None, expected: tuple[float, float, float] | None
) -> None:
    made = make("dicom")

    def edit(one: Any, i: int) -> None:
        one.PixelSpacing = [0.7, 0.6]
        if places is None:
            del one.ImagePositionPatient
        else:
            one.ImagePositionPatient = [0, 0, places[i]]
            one.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

    change(made, edit)
    with open_image(made.source) as image:
        assert image.spacing_um == (pytest.approx(expected) if expected else None)
