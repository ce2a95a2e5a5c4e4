"""Made images with a needle: what they must hide and what they must show."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from agent_trainer.labelled.needles import WORDS, Needle, needle_examples, needle_files, needle_image
from agent_trainer.labelled.settings import Needles
from agent_trainer.patches import in_memory, open_big
from cairn.errors import ImageError
from cairn.images import find_images

SMALL = Needles(images=6, size=256, needle=8, seed=3)


def needle_of(needle: Needle, side: int) -> np.ndarray:
    with open_big(needle.path, 3) as big:
        corner = np.array(needle.middle) - side // 2
        (patch,) = big.patches(corner[np.newaxis], side)
    return patch.astype(float)


def test_the_same_settings_give_the_same_images_and_others_do_not(tmp_path: Path) -> None:
    first, again = (needle_examples(SMALL.model_copy(update={"folder": tmp_path / part})) for part in "ab")
    other = needle_examples(SMALL.model_copy(update={"folder": tmp_path / "a", "seed": 4}))
    digests = [
        [hashlib.sha256(needle.path.read_bytes()).hexdigest() for needle in made] for made in (first, again, other)
    ]
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])
    assert [needle.middle for needle in first] == [needle.middle for needle in again]


def test_images_are_made_once(tmp_path: Path) -> None:
    settings = SMALL.model_copy(update={"folder": tmp_path})
    before = [(path, path.stat().st_mtime_ns) for path, _ in needle_files(settings)]
    assert [(path, path.stat().st_mtime_ns) for path, _ in needle_files(settings)] == before
    assert [path.name for path in tmp_path.iterdir()] == [before[0][0].parent.name]


def test_words_come_equally_often_and_needles_lie_all_over(tmp_path: Path) -> None:
    made = [needle_image(SMALL, number) for number in range(30)]
    words = [word for _, word, _ in made]
    assert [words.count(word) for word in WORDS] == [10, 10, 10]
    middles = np.array([middle for _, _, middle in made])
    quarters = np.unique(middles * 2 // SMALL.size, axis=0)
    assert len(quarters) == 4
    assert middles.min() >= 4
    assert middles.max() <= SMALL.size - 4


def test_a_needle_is_under_a_thousandth_of_the_pixels_and_its_pattern_is_its_word(tmp_path: Path) -> None:
    settings = Needles(images=3, size=1024, needle=24, folder=tmp_path)
    assert np.pi * 12**2 / 1024**2 < 1e-3
    steps = {}
    for needle in needle_examples(settings):
        patch = needle_of(needle, 14)  # wholly inside the disc
        np.testing.assert_allclose(patch.mean(axis=(1, 2)), (120, 70, 160), atol=16)
        steps[needle.word] = [float(np.abs(np.diff(patch, axis=axis)).mean()) for axis in (1, 2)]
    assert steps["rows"][0] > 2 * steps["rows"][1]
    assert steps["columns"][1] > 2 * steps["columns"][0]
    assert min(steps["checks"]) > 2 * max(steps["rows"][1], steps["columns"][0])


def test_neither_a_mean_nor_a_small_copy_tells_the_word() -> None:
    """Of many needles, the image's mean and the disc in a copy of an eighth differ by less than chance makes them."""
    settings = Needles(images=2, size=256, needle=24, seed=1)
    means: dict[str, list[float]] = {word: [] for word in WORDS}
    small: dict[str, list[np.ndarray]] = {word: [] for word in WORDS}
    for number in range(30):
        image, word, (y, x) = needle_image(settings, number)
        copy = in_memory(image).reduced(32, 32).astype(float)
        means[word].append(image.mean())
        small[word].append(copy[:, y // 8, x // 8])
    for values in (means, small):
        stacked = np.array([values[word] for word in WORDS]).reshape(3, 10, -1)
        spread = stacked.std(axis=1).mean(axis=0) / np.sqrt(10)
        assert (np.ptp(stacked.mean(axis=1), axis=0) < 5 * spread + 1).all()


def test_where_the_needle_lies_is_seen_in_a_small_copy_by_its_colour() -> None:
    settings = Needles(images=2, size=512, needle=24)
    for number in range(3):
        image, _, (y, x) = needle_image(settings, number)
        copy = in_memory(image).reduced(64, 64).astype(float)
        violet = copy[2] - copy[1]  # blue over green
        found = np.unravel_index(violet.argmax(), violet.shape)
        assert np.hypot(found[0] - y / 8, found[1] - x / 8) < 3


def test_backgrounds_are_real_images_where_a_folder_is_named(real_data: Path, tmp_path: Path) -> None:
    settings = Needles(images=3, size=700, needle=16, backgrounds=real_data / "bccd", folder=tmp_path)
    colours = [
        in_memory(needle_image(settings, number, find_images(real_data / "bccd"))[0]).reduced(1, 1)
        for number in range(3)
    ]
    assert len({colour.tobytes() for colour in colours}) == 3
    first = needle_examples(settings)[0]
    with open_big(first.path, 3) as big:
        assert (big.height, big.width) == (700, 700)
        np.testing.assert_allclose(big.reduced(1, 1), colours[0], atol=1)


def test_a_folder_without_images_makes_no_backgrounds(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    settings = SMALL.model_copy(update={"backgrounds": tmp_path / "none", "folder": tmp_path / "out"})
    with pytest.raises(ImageError, match="none: found no image to make backgrounds of"):
        needle_examples(settings)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ImageError, match="cannot be written"):
        needle_examples(SMALL.model_copy(update={"folder": tmp_path / "file"}))


def test_images_in_the_folder_for_temporary_files_are_this_users_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path, _ = needle_files(SMALL)[0]
    own = path.parents[1]
    assert own.parent == tmp_path
    assert own.stat().st_mode & 0o077 == 0
    own.chmod(0o777)
    with pytest.raises(ImageError, match="open to others"):
        needle_files(SMALL)
