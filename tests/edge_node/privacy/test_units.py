"""What one image or patient can do to a tally, whatever is in it."""

from contextlib import suppress
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian

from cairn import codec, kernels
from cairn.errors import ImageError, PlanError
from cairn.images import ImageSource, Tile
from cairn.moments import exact
from cairn.plan import PixelStage, Plan, fingerprint
from cairn.privacy.sensitivity import bounds
from cairn.privacy.terms import Privacy
from cairn.tally import Tables
from edge_node.privacy.patients import patient_of
from edge_node.privacy.settings import PrivacySettings
from edge_node.privacy.units import UnitCounter
from edge_node.status import Board
from edge_node.worker import Job, count, count_offline
from tests.edge_node.conftest import STAGES, write_image, write_settings

NUMPY = kernels.load("numpy")
TERMS = Privacy("image", 3.0, 1e-6, 2.0, 4, 3000, sites=1, sharers=1)
SEED = bytes(range(32))
EACH_STAGE = pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)

# All of one key, all different, dark with a bright dot, as bright as can be: what a bound must hold against.
UNITS = {
    "even": np.full((3, 24, 24), 9000, np.uint16),
    "mixed": np.random.default_rng(1).integers(0, 65536, (3, 24, 24)).astype(np.uint16),
    "dot": np.pad(np.full((3, 1, 1), 65535, np.uint16), ((0, 0), (12, 11), (12, 11))),
    "bright": np.full((3, 24, 24), 65535, np.uint16),
    "tissue": np.random.default_rng(2).choice([0, 40, 300, 9000, 20000], (3, 24, 24)).astype(np.uint16),
}


def tables_of(stage: PixelStage, *units: str, across: int = 24) -> Tables:
    counter = UnitCounter(stage, NUMPY, TERMS, SEED)
    for name in units:
        values = UNITS[name]
        tiles = [Tile(0, 0, x, np.ascontiguousarray(values[:, :, x : x + across])) for x in range(0, 24, across)]
        with counter.unit(), counter.image(name):
            counter.add(reversed(tiles))
    return counter.tables()


def values_of(name: str, table: np.ndarray) -> np.ndarray:
    return exact(table) if name in {"sum", "second", "profile"} else table


@EACH_STAGE
@pytest.mark.parametrize("unit", UNITS)
def test_no_unit_moves_a_table_by_more_than_the_bound_that_its_noise_was_made_for(stage: PixelStage, unit: str) -> None:
    most = bounds(stage.shapes(), TERMS)
    for name, table in tables_of(stage, unit).items():
        assert float((values_of(name, table).astype(float) ** 2).sum()) <= most[name] ** 2 * (1 + 1e-12), name


@EACH_STAGE
def test_a_unit_more_adds_just_its_own_sample(stage: PixelStage) -> None:
    whole, without, alone = (
        tables_of(stage, *units) for units in (("mixed", "dot", "tissue"), ("mixed", "tissue"), ("dot",))
    )
    for name, table in whole.items():
        difference = values_of(name, table) - values_of(name, without[name])
        np.testing.assert_array_equal(difference, values_of(name, alone[name]), err_msg=name)


def test_the_sample_does_not_depend_on_how_an_image_is_cut_into_tiles() -> None:
    for stage in (STAGES["moments"], STAGES["counts"]):
        whole, parts = tables_of(stage, "tissue"), tables_of(stage, "tissue", across=6)
        for name, table in whole.items():
            np.testing.assert_array_equal(table, parts[name], err_msg=name)


def test_something_is_counted_of_every_unit_that_has_anything() -> None:
    found = tables_of(STAGES["counts"], "even", "tissue")
    assert 2 <= found["foreground"][0] <= 2 * TERMS.most_pixels


def test_an_image_that_breaks_half_way_adds_nothing_to_its_unit() -> None:
    def broken():
        yield Tile(0, 0, 0, UNITS["bright"])
        raise ImageError("truncated")

    counter = UnitCounter(STAGES["counts"], NUMPY, TERMS, SEED)
    with counter.unit():
        with suppress(ImageError), counter.image("bad"):
            counter.add(broken())
        with counter.image("tissue"):
            counter.add([Tile(0, 0, 0, UNITS["tissue"])])
    np.testing.assert_array_equal(counter.tables()["dense"], tables_of(STAGES["counts"], "tissue")["dense"])


def private_job(folder: Path, unit: str, extra: str = "") -> Job:
    terms = Privacy(unit, 3.0, 1e-6, 2.0, 1 if unit == "pixel" else 3, 3000, sites=1, sharers=1)  # type: ignore[arg-type]
    plan = Plan("tumour", 0, STAGES["counts"], None, terms)
    settings = write_settings(folder, extra)
    return Job(plan, fingerprint(codec.encode_plan(plan)), settings, NUMPY, Board(), lambda: False, SEED)


@pytest.fixture
def patients(tmp_path: Path) -> Path:
    for number in range(4):
        write_image(tmp_path / f"images/{'ab'[number % 2]}/visit{number}.ome.tif", number, side=32)
    return tmp_path


def test_images_of_one_patient_share_one_clip_and_of_two_have_two(patients: Path) -> None:
    by_image = count(private_job(patients, "image")).tables["foreground"][0]
    by_patient = count(private_job(patients, "patient", "[privacy]\npatient_folder = 1\n")).tables["foreground"][0]
    assert by_patient <= 2 * 9
    assert by_patient < by_image <= 4 * 9


def test_of_single_pixels_all_are_counted(patients: Path) -> None:
    assert count(private_job(patients, "pixel")).tables["pixels"][0] == 4 * 32 * 32


def test_the_aggregator_is_told_shares_of_private_work_and_no_numbers(patients: Path) -> None:
    job = private_job(patients, "image")
    seen = []
    count(
        Job(
            job.plan,
            job.fingerprint,
            job.settings,
            NUMPY,
            job.board,
            lambda: bool(seen.append(job.board.snapshot())),
            SEED,
        )
    )
    assert all(snapshot.work.private for snapshot in seen if snapshot.work)


def test_a_private_plan_is_not_counted_outside_the_service(patients: Path) -> None:
    with pytest.raises(PlanError, match="private"):
        count_offline(private_job(patients, "image"))


def write_dicom(path: Path, patient: str) -> ImageSource:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=["a"])
    data = FileDataset(str(path), {}, file_meta=meta, preamble=bytes(128))
    data.PatientID = patient
    data.save_as(path)
    return ImageSource(path.name, (path,), "dicom")


def test_a_patient_is_told_by_the_dicom_header_or_by_a_named_folder(tmp_path: Path) -> None:
    settings = PrivacySettings()
    assert patient_of(write_dicom(tmp_path / "a.dcm", " 0815 "), settings) == "0815"
    assert patient_of(write_dicom(tmp_path / "b.dcm", ""), settings) is None
    (tmp_path / "c.dcm").write_bytes(b"no dicom")
    assert patient_of(ImageSource("c.dcm", (tmp_path / "c.dcm",), "dicom"), settings) is None
    source = ImageSource("ward/p7/visit/x.tif", (), "tiff")
    assert patient_of(source, PrivacySettings(patient_folder=2)) == "p7"
    assert patient_of(ImageSource("x.tif", (), "tiff"), PrivacySettings(patient_folder=1)) is None


def test_an_image_of_an_unknown_patient_is_left_out_and_said_so_without_a_name(patients: Path) -> None:
    write_image(patients / "images/stray.ome.tif", 9, side=32)
    job = private_job(patients, "patient", "[privacy]\npatient_folder = 1\n")
    count(job)
    assert [problem.kind for problem in job.board.snapshot().problems] == ["an image whose patient is not known"]
