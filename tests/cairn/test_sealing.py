"""Sealed files: only their key opens them, whole, and as what they are."""

import io
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn import sealing
from cairn.errors import ChecksumMismatch, ConfigError
from cairn.sealing import CHUNK, HEAD, TAG, Sealer, open_any, open_data_keys, read_keys, rotate

SEALER = Sealer(b"newest--", {b"newest--": bytes(32), b"former--": bytes(range(32))})


def opened(sealed: bytes, sealer: Sealer | None = SEALER, context: str = "blob"):
    return open_any(io.BytesIO(sealed), sealer, context)


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7])
def test_what_was_sealed_comes_back_whatever_its_size(size):
    content = (bytes(range(251)) * (size // 251 + 1))[:size]
    sealed = SEALER.seal_bytes(content, "blob")
    assert len(sealed) == HEAD + size + TAG * max(1, -(-size // CHUNK))
    assert opened(sealed).read() == content
    assert size < 32 or content[:32] not in sealed


@given(st.lists(st.tuples(st.integers(0, 2 * CHUNK + 100), st.integers(0, 70_000)), min_size=1, max_size=4))
@settings(max_examples=15, deadline=None)
def test_it_is_read_from_any_place(reads):
    content = bytes(2 * CHUNK) + bytes(range(100))
    file = opened(SEALER.seal_bytes(content, "blob"))
    for place, size in reads:
        file.seek(place)
        assert file.read(size) == content[place : place + size]


def test_the_same_content_is_never_sealed_to_the_same_bytes():
    assert SEALER.seal_bytes(b"content", "blob") != SEALER.seal_bytes(b"content", "blob")


@pytest.mark.parametrize(
    "change",
    [
        lambda sealed: sealed[:-1],
        lambda sealed: sealed[: HEAD + CHUNK + TAG],  # the last chunk is gone
        lambda sealed: sealed[:HEAD] + sealed[HEAD + CHUNK + TAG :],
        lambda sealed: sealed[:HEAD],
        lambda sealed: sealed[: HEAD - 1],
        lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1]),
        lambda sealed: sealed[:20] + bytes([sealed[20] ^ 1]) + sealed[21:],
        lambda sealed: sealed + b"\0",
    ],
    ids=["cut", "last chunk gone", "first chunk gone", "head alone", "less", "a bit", "a bit of the salt", "longer"],
)
def test_a_file_that_was_changed_anywhere_does_not_open(change):
    sealed = SEALER.seal_bytes(bytes(CHUNK + 5), "blob")
    with pytest.raises(ChecksumMismatch, match="does not open"):
        opened(change(sealed)).read()


def test_chunks_of_two_files_do_not_mix_and_a_file_opens_as_what_it_is_alone():
    one, other = (SEALER.seal_bytes(bytes(2 * CHUNK), "blob") for _ in range(2))
    second = HEAD + CHUNK + TAG
    with pytest.raises(ChecksumMismatch):
        opened(one[:second] + other[second:]).read()
    with pytest.raises(ChecksumMismatch):
        opened(one, context="another blob").read()


def test_a_plain_file_from_before_there_was_a_key_is_read_as_it_is():
    assert opened(b"plain", None).read() == b"plain"
    assert opened(b"", SEALER).read() == b""


def test_a_sealed_file_without_its_key_is_one_sentence():
    sealed = SEALER.seal_bytes(b"content", "blob")
    with pytest.raises(ConfigError, match="no key is set"):
        opened(sealed, None)
    with pytest.raises(ConfigError, match="restore the file of data keys"):
        opened(sealed, Sealer(b"another-", {b"another-": bytes(32)}))


def test_a_large_file_streams(tmp_path):
    plain, sealed = tmp_path / "plain", tmp_path / "sealed"
    with plain.open("wb") as file:
        file.truncate(48 * CHUNK)
    tracemalloc.start()
    with plain.open("rb") as source, sealed.open("wb") as target:
        SEALER.seal(source, target, "blob")
    with sealed.open("rb") as file:
        reader = open_any(file, SEALER, "blob")
        assert sum(len(block) for block in iter(lambda: reader.read(CHUNK), b"")) == 48 * CHUNK
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 12 * CHUNK


OLD, NEW = bytes(32), b"\1" * 32


def test_a_new_key_encryption_key_wraps_the_data_keys_anew_and_the_old_one_opens_nothing_then(tmp_path):
    path = tmp_path / "data-keys.json"
    sealed = open_data_keys(path, [OLD]).seal_bytes(b"content", "blob")
    assert path.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="add it as a further line"):
        open_data_keys(path, [NEW])
    assert rotate(path, [NEW, OLD], new_data_key=False) == 1
    assert opened(sealed, open_data_keys(path, [NEW])).read() == b"content"
    with pytest.raises(ConfigError):
        open_data_keys(path, [OLD])


def test_a_new_data_key_seals_from_then_on_and_the_former_one_opens_what_it_sealed(tmp_path):
    path = tmp_path / "data-keys.json"
    before = open_data_keys(path, [OLD])
    sealed = before.seal_bytes(b"content", "blob")
    assert rotate(path, [OLD], new_data_key=True) == 2
    after = open_data_keys(path, [OLD])
    assert after.newest != before.newest
    assert opened(sealed, after).read() == b"content"
    assert opened(after.seal_bytes(b"new", "blob"), after).read() == b"new"


def test_no_key_is_shown_and_none_stands_in_the_file_of_data_keys(tmp_path):
    path = tmp_path / "data-keys.json"
    sealer = open_data_keys(path, [NEW])
    [key] = sealer.keys.values()
    assert key.hex() not in path.read_text() + repr(sealer)
    assert NEW.hex() not in path.read_text()


@pytest.mark.parametrize("text", ["", "# nothing", "abc", "00" * 31, "zz" * 32])
def test_what_is_no_key_is_one_sentence_that_does_not_repeat_it(text):
    with pytest.raises(ConfigError, match="64 hexadecimal digits") as raised:
        read_keys(text)
    assert text not in str(raised.value) or not text


def test_keys_are_read_from_lines_the_one_in_use_first():
    assert read_keys(f"# of 2026\n{NEW.hex()}\n{OLD.hex()}\n") == (NEW, OLD)
    assert read_keys(f"{NEW.hex()},{OLD.hex()}") == (NEW, OLD)


@pytest.mark.parametrize("content", [b"{", b"{}", json.dumps({"keys": {"zz": 1}}).encode()])
def test_a_damaged_file_of_data_keys_is_one_sentence(tmp_path, content):
    path = tmp_path / "data-keys.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="is damaged"):
        open_data_keys(path, [OLD])
    assert not sealing.is_sealed(path)
