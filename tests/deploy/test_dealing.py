from pathlib import Path

import numpy as np
import pytest
import tifffile

from cairn.errors import ImageError
from cairn.images import find_images
from deploy.dealing import common_bands, deal, lay_out


def write_image(path: Path, side: int = 8, bands: tuple[str, ...] = ("a", "b")) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.zeros((len(bands), side, side), np.uint16)
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "CYX", "Channel": {"Name": list(bands)}})


def test_a_folder_is_never_split_over_sites_when_there_are_enough_folders(tmp_path: Path) -> None:
    for name in ("north/1", "north/2", "east/1", "south/1", "west/1"):
        write_image(tmp_path / f"{name}.ome.tif")
    hands = deal(find_images(tmp_path), 3)
    owners = {source.id.split("/")[0]: hand.site for hand in hands for source in hand.sources}
    assert [len({s.id for s in hand.sources}) for hand in hands].count(0) == 0
    for hand in hands:
        assert all(owners[source.id.split("/")[0]] == hand.site for source in hand.sources)
    assert sum(len(hand.sources) for hand in hands) == 5


def test_single_images_are_dealt_when_folders_are_fewer_than_sites(tmp_path: Path) -> None:
    for i in range(4):
        write_image(tmp_path / f"only/{i}.ome.tif")
    assert sorted(len(hand.sources) for hand in deal(find_images(tmp_path), 3)) == [1, 1, 2]


def test_fewer_images_than_sites_are_refused_with_both_numbers(tmp_path: Path) -> None:
    write_image(tmp_path / "one.ome.tif")
    with pytest.raises(ImageError, match="1 images were found for 2 sites"):
        deal(find_images(tmp_path), 2)


def test_a_site_sees_exactly_the_images_dealt_to_it(tmp_path: Path) -> None:
    for name in ("a/1", "b/1", "b/2"):
        write_image(tmp_path / "data" / f"{name}.ome.tif")
    channels = tmp_path / "data" / "c" / "field"
    channels.mkdir(parents=True)
    for band in ("x", "y"):
        tifffile.imwrite(channels / f"{band}.tif", np.zeros((8, 8), np.uint8))
    for hand in deal(find_images(tmp_path / "data"), 2):
        lay_out(hand, tmp_path / hand.site)
        assert [s.id for s in find_images(tmp_path / hand.site)] == sorted(s.id for s in hand.sources)


def test_common_bands_are_those_of_all_images_in_the_order_of_the_first(tmp_path: Path) -> None:
    write_image(tmp_path / "1.ome.tif", bands=("c", "a", "b"))
    write_image(tmp_path / "2.ome.tif", bands=("a", "x", "c"))
    assert common_bands(tmp_path) == ("c", "a")


def test_images_without_a_common_band_are_refused(tmp_path: Path) -> None:
    write_image(tmp_path / "1.ome.tif", bands=("a", "b"))
    write_image(tmp_path / "2.ome.tif", bands=("c", "d"))
    with pytest.raises(ImageError, match="no band in common"):
        common_bands(tmp_path)


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no image was found"):
        common_bands(tmp_path)
