"""Labelled images become arrays of one size, and orders and weights that make up for unequal classes."""

import resource
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow

from agent_trainer.labelled.balance import balanced_order, class_weights, order
from agent_trainer.labelled.reading import read_all, read_whole, size_of
from agent_trainer.labelled.sources import Example
from cairn.errors import ImageError


def tiff(path: Path, values: npt.NDArray[Any], **how: Any) -> Path:
    tifffile.imwrite(path, values, **how)
    return path


def test_real_x_rays_blood_smears_and_slides_are_read_as_they_are(real_data: Path) -> None:
    x_ray = next((real_data / "cxr_nih224" / "Pneumonia").glob("*.jpg"))
    grey = read_whole(x_ray, 224, 1)
    assert (grey[0] == np.asarray(Pillow.open(x_ray))).all()
    assert (read_whole(x_ray, 224, 3) == grey).all()
    smear = real_data / "bccd" / "BloodImage_00003.jpg"
    assert size_of(smear) == (480, 640)
    wanted = np.asarray(Pillow.open(smear).resize((64, 64), Pillow.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(read_whole(smear, 64, 3).astype(int) - wanted).max() <= 1
    slide = real_data / "pathology" / "cmu-1-small-region.svs"
    assert size_of(slide) == (2967, 2220)
    assert read_whole(slide, 100, 3).std() > 10


def test_a_reduced_image_has_no_stripes_of_its_own(tmp_path: Path) -> None:
    stripes = np.zeros((240, 240), np.uint8)
    stripes[:, ::2] = 200
    Pillow.fromarray(stripes).save(tmp_path / "s.png")
    assert np.abs(read_whole(tmp_path / "s.png", 50, 1).astype(int) - 100).max() <= 12


def test_small_images_are_enlarged_smoothly(tmp_path: Path) -> None:
    Pillow.fromarray(np.array([[0, 200]], np.uint8)).save(tmp_path / "s.png")
    row = read_whole(tmp_path / "s.png", 9, 1)[0, 4].astype(int)
    assert row[0] == 0
    assert row[-1] == 200
    assert (np.diff(row) >= 0).all()
    assert len(set(row.tolist())) > 4


@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_deep_values_lie_between_their_own_percentiles(tmp_path: Path, dtype: str) -> None:
    values = np.arange(10_000).reshape(100, 100).astype(dtype)
    values[0, 0] = 60_000  # a hot pixel
    found = read_whole(tiff(tmp_path / "x.tif", values), 100, 1)[0].astype(float)
    expected = ((values - 49.5) / (9950 - 49.5) * 255).clip(0, 255)
    assert np.abs(found - expected).max() < 2.5


def not_a_number(path: Path) -> Path:
    values = np.ones((8, 8), np.float32)
    values[3, 3] = np.nan
    return tiff(path / "nan.tif", values)


def cut_short(path: Path) -> Path:
    whole = tiff(path / "short.tif", np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    whole.write_bytes(whole.read_bytes()[:1000])
    return whole


def volume(path: Path) -> Path:
    return tiff(path / "volume.ome.tif", np.ones((5, 8, 8), np.uint8), metadata={"axes": "ZYX"})


def text(path: Path) -> Path:
    (path / "text.png").write_text("no picture")
    return path / "text.png"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (not_a_number, "1 pixels are NaN or infinite; expected numbers"),
        (cut_short, "truncated, its pixels go on beyond its end at byte 1000"),
        (volume, "found 5 slices; expected one"),
        (text, "corrupt or not a PNG"),
        (lambda path: path / "gone.png", "is no image; expected a file of a format that Cairn reads"),
    ],
)
def test_an_image_that_cannot_be_read_costs_a_sentence_and_no_other_image(
    tmp_path: Path, make: Any, sentence: str
) -> None:
    bad = make(tmp_path)
    for n in range(2):
        Pillow.fromarray(np.full((8, 8), n + 1, np.uint8)).save(tmp_path / f"{n}.png")
    paths = [tmp_path / "0.png", bad, tmp_path / "1.png"]
    examples = [Example(path.name, path, n, path.name) for n, path in enumerate(paths)]
    pixels, kept, problems = read_all(examples, 8, 1)
    assert [e.label for e in kept] == [0, 2]
    assert pixels[:, 0, 0, 0].tolist() == [1, 2]
    assert len(problems) == 1
    assert problems[0].startswith(f"{bad.name}: {sentence}")
    with pytest.raises(ImageError, match=sentence):
        read_whole(bad, 8, 1)


def squares(folder: Path, count: int) -> list[Example]:
    rng, made = np.random.default_rng(0), []
    for n in range(count):
        Pillow.fromarray(rng.integers(0, 256, (16, 16), np.uint8)).save(folder / f"{n}.png")
        made.append(Example(f"{n}", folder / f"{n}.png", n, f"{n}"))
    return made


def test_many_images_lie_in_a_file_without_a_name_and_are_those_that_would_be_in_memory(tmp_path: Path) -> None:
    examples = squares(tmp_path, 6)
    examples[2].path.write_bytes(b"\x89PNG")
    kept_at = tmp_path / "run"
    kept_at.mkdir()

    def lighter(pixels: Any) -> Any:
        return pixels // 2 + 100

    held, learned, problems = read_all(examples, 8, 1, change=lighter)
    mapped, same, said = read_all(examples, 8, 1, kept_at, lighter, in_memory=6 * 8 * 8 - 1)
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, held)
    assert (same, said, len(same)) == (learned, problems, 5)
    assert list(kept_at.iterdir()) == []
    few, _, _ = read_all(examples, 8, 1, kept_at, lighter, in_memory=6 * 8 * 8)
    assert not isinstance(few, np.memmap)
    none, nobody, _ = read_all(examples[2:3], 8, 1, kept_at, in_memory=0)
    assert (none.shape, nobody) == ((0, 1, 8, 8), ())


def test_images_for_which_the_disk_has_no_room_are_refused(tmp_path: Path) -> None:
    examples = squares(tmp_path, 4)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200, hard))
    try:
        with pytest.raises(ImageError, match=r"no room in the trainer's folder \(File too large\); make room"):
            read_all(examples, 8, 1, tmp_path, in_memory=0)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@given(st.lists(st.integers(0, 4), min_size=1, max_size=50))
def test_weights_make_each_class_count_the_same_and_keep_the_mean(labels: list[int]) -> None:
    array = np.array(labels)
    weights = class_weights(array, 6)
    assert weights.dtype == np.float32
    assert weights[array].mean() == pytest.approx(1, rel=1e-5)
    counts = np.bincount(array, minlength=6)
    shares = (weights * counts)[counts > 0]
    assert shares == pytest.approx(np.full(len(shares), shares[0]), rel=1e-5)
    assert (weights[counts == 0] == 0).all()


@given(st.lists(st.integers(0, 4), min_size=1, max_size=30), st.integers(0, 200), st.integers(0, 99))
def test_a_balanced_order_has_each_class_as_often_and_spares_no_example(
    labels: list[int], count: int, seed: int
) -> None:
    array = np.array(labels)
    places = balanced_order(array, np.random.default_rng(seed), count)
    assert places.shape == (count,)
    seen = np.bincount(array[places], minlength=5)[np.unique(array)]
    assert seen.max(initial=0) - seen.min() <= 1
    for label in np.unique(array):
        times = np.bincount(places, minlength=len(array))[array == label]
        assert times.max() - times.min() <= 1


@given(st.integers(1, 30), st.integers(0, 100))
def test_other_orders_take_every_example_before_one_comes_again(number: int, count: int) -> None:
    labels = np.zeros(number, np.int64)
    places = order(labels, np.random.default_rng(0), count, "weights")
    times = np.bincount(places, minlength=number)
    assert len(places) == count
    assert times.max() - times.min() <= 1
    again = order(labels, np.random.default_rng(0), count, "none")
    assert (places == again).all()
    sampler = order(np.arange(number), np.random.default_rng(0), number, "sampler")
    assert sorted(sampler.tolist()) == list(range(number))
