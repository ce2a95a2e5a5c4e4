"""What a file says of where its voxels lie, and what is refused because it does not say it, or says two things."""

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from agent_trainer.volumes.nifti import check_alike, read_scan, write_labels
from cairn.errors import ImageError
from tests.agent_trainer.volumes.scans import ARROW, pixdim, straight, write

SHEARED = np.array([[1, 0.5, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)
FLAT = np.array([[1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]], float)


def test_a_volume_is_read_with_its_spacing_and_place(tmp_path: Path) -> None:
    affine = straight(0.5, 2.0, 3.0)
    affine[:3, 3] = 10, 20, 30
    scan = read_scan(write(tmp_path / "a.nii", affine=affine))
    np.testing.assert_array_equal(scan.values, ARROW)
    assert scan.spacing == (0.5, 2.0, 3.0)
    np.testing.assert_allclose(scan.affine, affine)


def test_a_compressed_file_and_one_with_a_fourth_axis_of_one_are_the_same_volume(tmp_path: Path) -> None:
    for path in (write(tmp_path / "a.nii.gz"), write(tmp_path / "b.nii", ARROW[..., np.newaxis])):
        np.testing.assert_array_equal(read_scan(path).values, ARROW)


def test_spacings_in_micrometres_and_metres_become_millimetres(tmp_path: Path) -> None:
    for code, factor in ((3, 1e3), (1, 1e-3)):
        affine = straight(2 * factor, factor, factor)
        scan = read_scan(write(tmp_path / "a.nii", affine=affine, xyzt_units=code))
        assert scan.spacing == pytest.approx((2, 1, 1))
        np.testing.assert_allclose(scan.affine, straight(2, 1, 1))


def test_a_file_with_a_qform_alone_lies_as_that_says(tmp_path: Path) -> None:
    affine = np.array([[0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]], float)
    image = nibabel.Nifti1Image(ARROW, None)
    image.set_qform(affine, 1)
    image.header.set_xyzt_units("mm")
    nibabel.save(image, tmp_path / "a.nii")
    scan = read_scan(tmp_path / "a.nii")
    np.testing.assert_allclose(scan.affine, affine, atol=1e-5)
    assert scan.spacing == pytest.approx((1, 2, 3))


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (float("nan"), 1.0, 1.0), (0.0, 0.0, 0.0), (-1.0, 1.0, 1.0)])
def test_a_spacing_that_is_none_is_refused_unless_the_settings_give_one(tmp_path: Path, spacing: Any) -> None:
    path = write(tmp_path / "a.nii", pixdim=pixdim(*spacing))
    with pytest.raises(ImageError, match=r"a\.nii: its header says a spacing of .* set spacing_mm for this source"):
        read_scan(path)
    scan = read_scan(path, (2.0, 2.0, 3.0))
    assert scan.spacing == (2.0, 2.0, 3.0)
    np.testing.assert_allclose(scan.affine, straight(2, 2, 3))


def test_a_spacing_that_the_file_says_is_not_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"says a spacing of 1, 1, 1 mm, the settings 2, 2, 2; .* take it out"):
        read_scan(path, (2.0, 2.0, 2.0))
    assert read_scan(path, (1.0, 1.0, 1.0)).spacing == (1.0, 1.0, 1.0), "the same does no harm"


@pytest.mark.parametrize("header", [{"sform_code": 0, "qform_code": 0}])
def test_a_file_that_does_not_say_how_it_lies_needs_the_settings_word(tmp_path: Path, header: Any) -> None:
    path = write(tmp_path / "a.nii", affine=straight(1, 2, 3), **header)
    with pytest.raises(ImageError, match=r"neither sform nor qform is set.* set orientation for this source"):
        read_scan(path)
    scan = read_scan(path, orientation="LPS")
    np.testing.assert_allclose(scan.affine, np.diag([-1.0, -2.0, 3.0, 1.0]))
    turned = read_scan(path, orientation="SRA").affine
    np.testing.assert_allclose(turned[:3, :3] @ [1, 0, 0], [0, 0, 1], err_msg="the first axis points up")


def test_an_orientation_that_the_file_says_is_not_overridden(tmp_path: Path) -> None:
    path = write(tmp_path / "a.nii")
    with pytest.raises(ImageError, match=r"says the orientation RAS, the settings LPS; .* take it out"):
        read_scan(path, orientation="LPS")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"affine": SHEARED}, r"two of its axes are at 63 degrees \(a sheared affine\); expected right angles"),
        ({"affine": straight(100, 1, 1)}, r"a spacing of 100, 1, 1 mm; expected 0.01 to 50 mm: check the unit"),
        ({"pixdim": pixdim(2, 1, 1)}, r"says two spacings, 2, 1, 1 and 1, 1, 1 mm \(pixdim and affine\)"),
        ({"srow_x": [np.nan, 0, 0, 0]}, r"orientation is no numbers or leaves an axis out"),
        ({"srow_x": [0, 0, 0, 0]}, r"orientation is no numbers or leaves an axis out"),
        ({"srow_x": [1, 1, 0, 0], "srow_y": [0, 0, 0, 0]}, r"two of its axes are at 0 degrees"),
        ({"values": ARROW[0]}, r"found 3 × 4 voxels; expected a volume of three axes and one channel"),
        ({"values": np.zeros((2, 3, 4, 2), np.float32)}, r"found 2 × 3 × 4 × 2 voxels; expected a volume"),
        ({"values": ARROW.astype(np.complex64)}, r"values of type complex64; expected real numbers"),
    ],
)
def test_an_odd_file_is_refused_with_a_sentence(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = write(tmp_path / "a.nii", **change)
    with pytest.raises(ImageError, match=sentence) as refused:
        read_scan(path)
    assert str(refused.value).startswith("a.nii: ")


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_file_that_is_cut_off_or_another_thing_cannot_be_read(tmp_path: Path, name: str) -> None:
    whole = write(tmp_path / name, np.random.default_rng(0).random((20, 20, 20), np.float32)).read_bytes()
    for content in (whole[: len(whole) // 2], b"no volume", b"", whole[:100]):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match="cannot be read as NIfTI"):
            read_scan(tmp_path / name)
    with pytest.raises(ImageError, match="cannot be read as NIfTI"):
        read_scan(tmp_path / "gone.nii")


def test_labels_of_another_shape_or_place_are_not_those_of_the_volume(tmp_path: Path) -> None:
    image = read_scan(write(tmp_path / "image.nii"))
    near, far = straight(), straight()
    near[0, 3], far[0, 3] = 0.05, 0.5
    check_alike("x", image, read_scan(write(tmp_path / "near.nii", affine=near)))
    with pytest.raises(ImageError, match=r"x: its labels lie up to 0\.5 mm away from the volume"):
        check_alike("x", image, read_scan(write(tmp_path / "far.nii", affine=far)))
    with pytest.raises(ImageError, match="x: its labels have 2 × 3 × 3 voxels, the volume 2 × 3 × 4; expected as many"):
        check_alike("x", image, read_scan(write(tmp_path / "short.nii", ARROW[..., :3])))
    with pytest.raises(ImageError, match="lie up to 4 mm away"):
        check_alike("x", image, read_scan(write(tmp_path / "steps.nii", affine=straight(1, 1, 2))))


def test_labels_are_written_as_their_volume_lies(tmp_path: Path) -> None:
    affine = np.array([[0, -2, 0, 5], [1, 0, 0, 6], [0, 0, 3, 7], [0, 0, 0, 1]], float)
    scan = read_scan(write(tmp_path / "a.nii", affine=affine))
    labels = (ARROW > 11).astype(np.uint8)
    write_labels(tmp_path / "labels.nii.gz", labels, scan)
    again = read_scan(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(again.values, labels)
    check_alike("x", scan, again)
