"""Blobs in a folder and in an object store."""

import errno
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from aggregator.intake import store as store_module
from aggregator.intake.store import BlobStore
from cairn.errors import ConfigError, StorageFull, StudyError


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    """Start an S3 server on the loopback."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["file", "s3"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[BlobStore]:
    if request.param == "file":
        yield BlobStore(f"file://{tmp_path}/blobs")
        return
    endpoint = request.getfixturevalue("s3_endpoint")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    import fsspec

    fsspec.get_filesystem_class("s3").clear_instance_cache()  # of another test's server, which is gone
    fsspec.filesystem("s3").mkdir(f"bucket-{tmp_path.name[-20:].replace('_', '-').lower()}")
    yield BlobStore(f"s3://bucket-{tmp_path.name[-20:].replace('_', '-').lower()}/tallies")


def write(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def read(blobs: BlobStore, digest: str) -> bytes:
    with blobs.open(digest) as file:
        return file.read()


def test_a_blob_from_a_backup_takes_the_place_of_a_damaged_one(blobs: BlobStore, tmp_path: Path) -> None:
    digest = write(tmp_path / "f", b"whole")
    for content in (b"who", b"whole"):
        (tmp_path / "f").write_bytes(content)
        blobs.put_raw(tmp_path / "f", digest)
    assert read(blobs, digest) == b"whole"


def test_a_blob_comes_back_as_it_was_put(blobs: BlobStore, tmp_path: Path) -> None:
    data = os.urandom(6 << 20)  # over S3's least part, so that it goes in several
    digest = write(tmp_path / "f", data)
    assert not blobs.has(digest)
    blobs.put(tmp_path / "f", digest)
    assert blobs.has(digest)
    assert read(blobs, digest) == data
    assert not (tmp_path / "f").exists()


def test_a_blob_is_read_in_a_stream(blobs: BlobStore, tmp_path: Path) -> None:
    digest = write(tmp_path / "f", b"0123456789")
    blobs.put(tmp_path / "f", digest)
    with blobs.open(digest) as file:
        assert [file.read(4), file.read(4), file.read(4), file.read(4)] == [b"0123", b"4567", b"89", b""]


def test_putting_a_blob_twice_is_putting_it_once(blobs: BlobStore, tmp_path: Path) -> None:
    for _ in range(2):
        digest = write(tmp_path / "f", b"the same")
        blobs.put(tmp_path / "f", digest)
    assert read(blobs, digest) == b"the same"
    assert not (tmp_path / "f").exists()


def test_a_blob_that_is_gone_is_named(blobs: BlobStore) -> None:
    with pytest.raises(StudyError, match="the blob 0123456789ab is missing"), blobs.open("0123456789abcdef"):
        pass


def test_blobs_survive_a_restart(tmp_path: Path) -> None:
    digest = write(tmp_path / "f", b"kept")
    BlobStore(f"file://{tmp_path}/blobs").put(tmp_path / "f", digest)
    assert read(BlobStore(f"file://{tmp_path}/blobs"), digest) == b"kept"


def test_a_url_of_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ConfigError, match="blobs cannot be kept there"):
        BlobStore("carrier-pigeon://loft")


def test_a_blob_is_copied_where_a_rename_cannot_go(tmp_path: Path) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or shared_memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is no second file system here")
    source = shared_memory / f"cairn-{os.getpid()}"
    digest = write(source, b"from another disk")
    blobs = BlobStore(f"file://{tmp_path}/blobs")
    blobs.put(source, digest)
    assert read(blobs, digest) == b"from another disk"
    assert not source.exists()
    assert [p.name for p in (tmp_path / "blobs" / digest[:2]).iterdir()] == [digest]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_in_one_sentence(number: int) -> None:
    sentence = "the tally cannot be kept: its disk is full; nothing was kept half"
    with pytest.raises(StorageFull, match=sentence), store_module.storage_full("the tally cannot be kept"):
        raise OSError(number, os.strerror(number))


def test_another_fault_of_the_disk_is_not_called_full() -> None:
    with pytest.raises(OSError, match="Input/output"), store_module.storage_full("the tally cannot be kept"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
