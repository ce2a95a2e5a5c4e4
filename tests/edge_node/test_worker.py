"""One plan over a site's images, good and bad."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile

from cairn import codec, kernels
from cairn.errors import ImageError, StorageFull
from cairn.images import find_images, open_image
from cairn.plan import Plan, fingerprint
from edge_node.fitness import lacking
from edge_node.status import Board
from edge_node.worker import GivenUp, Job, NothingCountable, count, count_offline

from .conftest import STAGES, write_image, write_settings

NUMBA = kernels.load("numba")
EACH_STAGE = pytest.mark.parametrize("stage", list(STAGES))


@pytest.fixture
def site(tmp_path):
    for number in range(3):
        write_image(tmp_path / "images" / f"good{number}.ome.tif", number)
    return write_settings(tmp_path)


def make_job(settings, stage, window=0, cancelled=lambda: False):
    plan = Plan("tumour", window, STAGES[stage])
    return Job(plan, fingerprint(codec.encode_plan(plan)), settings, NUMBA, Board(), cancelled)


def tables(settings, stage, **more):
    job = make_job(settings, stage, **more)
    return count(job).tables, job.board.snapshot()


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert np.array_equal(a[name], b[name]), name


def truncate(path: Path) -> None:
    write_image(path, 9)
    path.write_bytes(path.read_bytes()[:-20_000])


def corrupt(path: Path) -> None:
    values = np.random.default_rng(9).integers(0, 60000, (3, 96, 96)).astype(np.uint16)
    about = {"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}}
    tifffile.imwrite(path, values, tile=(32, 32), metadata=about, ome=True, compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[1].dataoffsets[4], tiff.pages[1].databytecounts[4]
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = bytes(length)
    path.write_bytes(content)


def not_a_number(path: Path) -> None:
    values = np.full((3, 96, 96), 300, np.float32)
    values[2, 90, 90] = np.nan
    tifffile.imwrite(path, values, tile=(32, 32), metadata={"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}})


def complex_numbers(path: Path) -> None:
    values = np.ones((3, 96, 96), np.complex64)
    tifffile.imwrite(path, values, metadata={"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}}, ome=True)


BAD = {
    "truncated": (truncate, "could not be read", "truncated"),
    "corrupt": (corrupt, "could not be read", "corrupt"),
    "empty": (lambda path: path.write_bytes(b""), "could not be read", "bad"),
    "no image at all": (lambda path: path.write_bytes(b"nonsense" * 99), "could not be read", "bad"),
    "not a number": (not_a_number, "values that cannot be counted", "not a number"),
    "wrong dtype": (complex_numbers, "could not be read", "expected real numbers"),
    "missing band": (lambda path: write_image(path, 9, ("a", "b", "x")), "lacks c", "band c is missing"),
    "too few bands": (lambda path: write_image(path, 9, ("a",)), "lacks b, c", "band b is missing"),
}


@EACH_STAGE
@pytest.mark.parametrize("make_bad", BAD.values(), ids=list(BAD))
def test_a_bad_image_is_shown_to_a_person_and_leaves_nothing_behind(site, stage, make_bad):
    good, _ = tables(site, stage)
    make, kind, detail = make_bad
    (site.state_dir / "windows" / "tumour.json").unlink()
    make(site.images.folder / "bad.ome.tif")
    mixed, now = tables(site, stage)
    assert_same(mixed, good)
    [problem] = now.problems
    assert kind in problem.kind
    assert "bad.ome.tif" not in problem.kind
    assert "bad.ome.tif" in problem.detail
    assert detail in problem.detail
    assert (now.work.files_done, now.work.files_total) == (4, 4)
    assert now.work.pixels_done == 3 * 96 * 96
    if stage == "codebook":
        labels = [path.name for path in (site.labels_folder / "tumour").iterdir()]
        assert sorted(labels) == sorted(
            f"good{i}.ome.tif.{what}" for i in range(3) for what in ("clusters.ome.tif", "states.ome.tif", "states.png")
        )


@EACH_STAGE
def test_an_image_that_changes_while_it_is_read_is_left_out_and_undone(site, stage):
    changed = site.images.folder / "good1.ome.tif"
    job: Job

    def change_when_reading() -> bool:
        work = job.board.snapshot().work
        if work and work.pixels_total and work.files_done == 1:
            os.utime(changed, ns=(1, 1))
        return False

    job = make_job(site, stage, cancelled=change_when_reading)
    tally = count(job)
    [problem] = job.board.snapshot().problems
    assert "changed" in problem.kind
    changed.unlink()
    alone = make_job(site, stage)
    assert_same(tally.tables, count(alone).tables)


def test_an_image_that_changed_since_its_window_was_frozen_is_left_out_of_later_stages(site):
    tables(site, "moments")
    write_image(site.images.folder / "good1.ome.tif", 77)
    counted, now = tables(site, "counts")
    assert counted["pixels"] == 2 * 96 * 96
    assert "changed" in now.problems[0].kind


def test_an_image_that_is_gone_is_left_out(site):
    tables(site, "moments")
    (site.images.folder / "good1.ome.tif").unlink()
    counted, now = tables(site, "counts")
    assert counted["pixels"] == 2 * 96 * 96
    assert "not there any more" in now.problems[0].kind


def test_new_images_enter_the_next_window_and_the_map_is_used_on_all(site):
    first, _ = tables(site, "moments")
    write_image(site.images.folder / "new.ome.tif", 5, side=64)
    again, _ = tables(site, "moments")
    assert_same(first, again)
    second, _ = tables(site, "counts", window=1)
    assert second["pixels"] == 64 * 64
    before, _ = tables(site, "codebook", window=0)
    assert before["pixels"] == 3 * 96 * 96
    everything, _ = tables(site, "codebook", window=1)
    assert everything["pixels"] == 3 * 96 * 96 + 64 * 64


def test_a_window_without_new_images_is_answered_with_zeros(site):
    tables(site, "moments")
    nothing, now = tables(site, "counts", window=1)
    assert not any(table.any() for table in nothing.values())
    assert now.problems == ()


def test_a_folder_that_is_not_mounted_is_waited_for_and_not_counted_as_empty(site):
    tables(site, "moments")
    away = site.images.folder.rename(site.images.folder.with_name("away"))
    with pytest.raises(ImageError, match="folder"):
        tables(site, "counts")
    site.images.folder.mkdir()
    with pytest.raises(ImageError, match="mounted"):
        tables(site, "counts")
    site.images.folder.rmdir()
    away.rename(site.images.folder)
    counted, _ = tables(site, "counts")
    assert counted["pixels"] == 3 * 96 * 96


def test_a_site_without_one_countable_image_says_so_and_names_no_file(tmp_path):
    (tmp_path / "images").mkdir()
    truncate(tmp_path / "images" / "patient7.ome.tif")
    with pytest.raises(NothingCountable, match="could not be read") as raised:
        tables(write_settings(tmp_path), "moments")
    assert "patient7" not in str(raised.value)


def test_bands_are_found_by_the_sites_own_mapping(tmp_path):
    write_image(tmp_path / "images" / "x.ome.tif", 1, ("DAPI", "c", "Opal 570"))
    plain = write_settings(tmp_path)
    plan = Plan("tumour", 0, STAGES["moments"])
    assert lacking(plan, plain.images) == "no image of this site can be counted: an image lacks a, b"
    mapped = write_settings(tmp_path, '[images.bands]\na = "Opal 570"\nb = 0\n')
    assert lacking(plan, mapped.images) is None
    counted, _ = tables(mapped, "moments")
    assert counted["pixels"] == 96 * 96


def test_a_site_without_images_takes_no_part(tmp_path):
    settings = write_settings(tmp_path)
    plan = Plan("tumour", 0, STAGES["moments"])
    assert lacking(plan, settings.images) == "the site's folder of images is not there"
    settings.images.folder.mkdir()
    assert lacking(plan, settings.images) == "the site holds no image"


def test_no_room_for_label_images_stops_the_stage_and_leaves_nothing_half_written(site, monkeypatch):
    class Full:
        """A file on a disk that is full after some blocks."""

        def __init__(self, file):
            self.file = file

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = tempfile.TemporaryFile
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "TemporaryFile", lambda *args, **names: Full(whole(*args, **names)))
        patched.setattr(os, "pwrite", full)
        with pytest.raises(StorageFull, match="room"):
            tables(site, "codebook")
    assert not [path for path in site.labels_folder.rglob("*") if path.is_file()]
    again, now = tables(site, "codebook")
    assert again["pixels"] == 3 * 96 * 96
    assert now.problems == ()


def test_the_work_is_given_up_when_the_plan_is_not_open_any_more(site):
    closed = threading.Event()
    job = make_job(site, "counts", cancelled=closed.is_set)
    closed.set()
    with pytest.raises(GivenUp):
        count(job)


def test_labels_are_written_beside_a_picture_for_images_in_subfolders_too(tmp_path):
    write_image(tmp_path / "images" / "slide a" / "x.ome.tif", 1)
    settings = write_settings(tmp_path)
    tables(settings, "codebook")
    folder = settings.labels_folder / "tumour" / "slide a"
    labels = tifffile.imread(folder / "x.ome.tif.states.ome.tif")
    assert labels.shape == (96, 96)
    assert set(np.unique(labels)) <= {0, 1, 2}
    assert (folder / "x.ome.tif.states.png").stat().st_size > 0


def test_label_images_are_written_as_zarr_when_the_site_wants_it_and_again_over_old_ones(tmp_path):
    write_image(tmp_path / "images" / "x.ome.tif", 1)
    settings = write_settings(tmp_path, '[labels]\nformat = "ome-zarr"\n')
    for _ in range(2):
        tables(settings, "codebook")
    folder = settings.labels_folder / "tumour"
    assert sorted(path.name for path in folder.iterdir()) == [
        "x.ome.tif.clusters.ome.zarr",
        "x.ome.tif.states.ome.zarr",
        "x.ome.tif.states.png",
    ]
    [source] = find_images(folder / "x.ome.tif.states.ome.zarr")
    with open_image(source) as labels:
        assert (labels.height, labels.width) == (96, 96)


def test_counting_offline_takes_all_images_and_freezes_nothing(site):
    job = make_job(site, "moments")
    tally, problems = count_offline(job)
    assert problems == []
    expected, _ = tables(site, "moments")
    assert_same(tally.tables, expected)
