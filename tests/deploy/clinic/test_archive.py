"""An archive is whole, or it is refused before anything is taken from it."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cairn.errors import ChecksumMismatch, ConfigError
from deploy.clinic.archive import open_part, read_archive, write_archive

PARTS = {"images/a.tar.zst": [b"layer" * 1000, b"more"], "wheels/b.whl.zst": [b"wheel"]}


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    moved: list[int] = []
    done = write_archive(tmp_path / "cairn.bundle", "images", {"images": {}}, PARTS, moved.append)
    assert sum(moved) == 5009 == done.about["bytes"]
    return done.path


def test_what_was_written_is_read_again(archive: Path) -> None:
    contents = read_archive(archive, "images")
    for name, chunks in PARTS.items():
        with open_part(contents, name) as read:
            assert b"".join(read) == b"".join(chunks)


def test_every_flipped_byte_of_a_part_is_found(archive: Path) -> None:
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        places = [(entry.offset_data, entry.size) for entry in tar if entry.name != "MANIFEST.json"]
    for begin, size in places:
        for at in range(begin, begin + size):
            archive.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
            with pytest.raises(ChecksumMismatch, match="fetch it again"):
                read_archive(archive, "images")


def test_an_archive_cut_off_anywhere_is_refused(archive: Path) -> None:
    whole = archive.read_bytes()
    with tarfile.open(archive) as tar:
        last = tar.getmembers()[-1]
    for size in range(0, last.offset_data + last.size, 97):
        archive.write_bytes(whole[:size])
        with pytest.raises((ChecksumMismatch, ConfigError)):
            read_archive(archive, "images")


def test_the_checksum_that_somebody_told_is_compared_with_the_whole_file(archive: Path) -> None:
    right = read_archive(archive, "images").sha256
    assert read_archive(archive, "images", right).parts
    with pytest.raises(ChecksumMismatch, match="was expected; fetch it again"):
        read_archive(archive, "images", "0" * 64)


def test_a_backup_is_no_archive_of_images_and_another_tar_is_none_at_all(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="of the kind 'images' where 'state' is expected"):
        read_archive(archive, "state")
    with tarfile.open(tmp_path / "other.tar", "w") as tar:
        tar.add(archive, "something")
    with pytest.raises(ConfigError, match="is no archive of `cairn deploy`"):
        read_archive(tmp_path / "other.tar", "images")
    with pytest.raises(ConfigError, match="there is no archive"):
        read_archive(tmp_path / "none", "images")


def test_the_checksums_are_those_that_anybody_would_compute(archive: Path, tmp_path: Path) -> None:
    from hashlib import sha256

    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    manifest = json.loads((tmp_path / "out/MANIFEST.json").read_bytes())
    for name, digest in manifest["parts"].items():
        assert sha256((tmp_path / "out" / name).read_bytes()).hexdigest() == digest


def test_nothing_is_left_when_the_source_breaks_off(tmp_path: Path) -> None:
    def broken() -> Iterator[bytes]:
        yield b"half"
        raise ConnectionError("gone")

    with pytest.raises((ConnectionError, ConfigError)):
        write_archive(tmp_path / "x", "images", {}, {"a": broken()}, lambda _: None)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_is_not_overwritten(archive: Path) -> None:
    before = archive.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        write_archive(archive, "images", {}, PARTS, lambda _: None)
    assert archive.read_bytes() == before
