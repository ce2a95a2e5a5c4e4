"""Counted by many workers: the same bits as by one process, and the same sentences."""

import os

import numpy as np
import pytest
import tifffile

from cairn.errors import ConfigError, PlanError
from edge_node.scale import cluster
from edge_node.scale.spread import count_files
from edge_node.status import Board
from edge_node.worker import GivenUp, count_offline
from tests.edge_node.conftest import write_image

from .conftest import cut_into, make_job

EACH_STAGE = pytest.mark.parametrize("stage", ["moments", "ranges", "counts", "recovery"])


def spread(job, client):
    return count_offline(job, lambda job, files: count_files(job, files, client))


def assert_same(spread_out, alone):
    (tally, problems), (expected, same_problems) = spread_out, alone
    assert tally.fingerprint == expected.fingerprint
    assert tally.tables.keys() == expected.tables.keys()
    for name, table in expected.tables.items():
        assert tally.tables[name].dtype == np.int64
        np.testing.assert_array_equal(tally.tables[name], table, name)
    assert problems == same_problems


@EACH_STAGE
@pytest.mark.parametrize("pixels", [1, 2**18, 2**19 + 1, 2**30])
def test_the_tables_are_those_of_one_process_however_the_images_are_cut(site, client, stage, pixels, monkeypatch):
    cut_into(monkeypatch, pixels)
    assert_same(spread(make_job(site, stage), client), count_offline(make_job(site, stage)))


def corrupt_the_end(path):
    """Break the last tile of an image of several, so that all but its last piece are good."""
    values = np.random.default_rng(9).integers(0, 60000, (3, 1060, 1060)).astype(np.uint16)
    about = {"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}}
    tifffile.imwrite(path, values, tile=(32, 32), metadata=about, ome=True, compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        offset, length = tiff.pages[2].dataoffsets[-1], tiff.pages[2].databytecounts[-1]
    content = bytearray(path.read_bytes())
    content[offset : offset + length] = bytes(length)
    path.write_bytes(content)


def not_a_number(path):
    values = np.full((3, 1060, 1060), 300, np.float32)
    values[2, 1050, 1050] = np.nan
    tifffile.imwrite(path, values, tile=(32, 32), metadata={"axes": "CYX", "Channel": {"Name": ["a", "b", "c"]}})


@pytest.mark.parametrize("stage", ["moments", "counts"])
def test_images_that_cannot_be_counted_are_left_out_as_a_whole_with_the_same_words(site, client, stage, monkeypatch):
    cut_into(monkeypatch, 2**18)
    folder = site.images.folder
    corrupt_the_end(folder / "corrupt.ome.tif")
    not_a_number(folder / "nan.ome.tif")
    write_image(folder / "other.ome.tif", 1, ("a", "b", "x"))
    (folder / "empty.ome.tif").write_bytes(b"")
    job = make_job(site, stage)
    found = spread(job, client)
    assert [problem.detail.split(":")[0] for problem in found[1]] == [
        "empty.ome.tif",
        "other.ome.tif",
        "corrupt.ome.tif",
        "nan.ome.tif",
    ]
    assert_same(found, count_offline(make_job(site, stage)))
    now = job.board.snapshot()
    assert now.problems == tuple(found[1])
    assert (now.work.files_done, now.work.files_total) == (9, 9)
    assert now.work.pixels_done == 2 * 1060 * 1060 + 3 * 96 * 96


def test_an_image_that_changes_while_others_are_counted_is_left_out_as_a_whole(site, client, monkeypatch):
    cut_into(monkeypatch, 2**18)
    changed = site.images.folder / "large1.ome.tif"

    class Changing(Board):
        def advance(self, pixels, files=0):
            super().advance(pixels, files)
            os.utime(changed, ns=(1, 1))

    tally, [problem] = spread(make_job(site, "counts", board=Changing()), client)
    assert "changed" in problem.kind
    changed.unlink()
    assert_same((tally, []), count_offline(make_job(site, "counts")))


def test_progress_is_told_of_every_piece_once(site, client, monkeypatch):
    cut_into(monkeypatch, 2**18)
    told = []

    class Listening(Board):
        def advance(self, pixels, files=0):
            super().advance(pixels, files)
            told.append(self.pixels_done())

    spread(make_job(site, "moments", board=Listening()), client)
    assert told == sorted(told)
    assert told[-1] <= 2 * 1060 * 1060 + 3 * 96 * 96


def test_a_folder_without_images_gives_the_tables_of_nothing(site, client):
    for path in site.images.folder.iterdir():
        path.unlink()
    assert_same(spread(make_job(site, "counts"), client), count_offline(make_job(site, "counts")))


@pytest.mark.parametrize("times", [0, 1], ids=["before", "later"])
def test_it_is_given_up_when_the_site_stops(site, client, times):
    looks = iter([False] * times)
    with pytest.raises(GivenUp):
        spread(make_job(site, "counts", cancelled=lambda: next(looks, True)), client)
    assert next(looks, None) is None
    assert_same(spread(make_job(site, "counts"), client), count_offline(make_job(site, "counts")))


def test_label_images_are_not_written_by_many(site, client):
    with pytest.raises(PlanError, match=r"label images are written, .* by one process"):
        spread(make_job(site, "codebook"), client)


def test_a_worker_that_does_not_see_the_images_is_one_sentence(site, client):
    away = site.images.folder.rename(site.images.folder.with_name("away"))
    with pytest.raises(ConfigError, match=r"the worker at inproc.* has no folder .*images; mount"):
        cluster.check_workers(client, site)
    away.rename(site.images.folder)
    cluster.check_workers(client, site)
