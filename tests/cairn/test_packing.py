"""Tables in byte planes."""

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from cairn.packing import BLOCK, Table, pack, read_plain, unpack

tables = st.one_of(
    arrays(np.int32, st.integers(0, 50), elements=st.integers(-(2**31), 2**31 - 1)),
    arrays(np.int64, st.integers(0, 50), elements=st.integers(-(2**63), 2**63 - 1)),
)


def unpacked(stored: bytes, like: Table) -> tuple[bool, Table]:
    into = np.full(like.size, 99, like.dtype)
    return unpack(io.BytesIO(stored), len(stored), into), into


@given(tables)
@settings(deadline=None)
def test_any_table_comes_back(table: Table) -> None:
    whole, read = unpacked(pack(table), table)
    assert whole
    np.testing.assert_array_equal(read, table)


@pytest.mark.parametrize("size", [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5])
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_tables_about_the_size_of_blocks_come_back(size: int, dtype: type) -> None:
    table = np.random.default_rng(size).integers(-(2**31), 2**31, size).astype(dtype)
    whole, read = unpacked(pack(table), table)
    assert whole
    np.testing.assert_array_equal(read, table)


def test_small_numbers_of_either_sign_take_little_more_than_their_entropy() -> None:
    table = np.random.default_rng(0).integers(-128, 128, 2**18).astype(np.int32)
    assert len(pack(table)) < 1.01 * 2**18


def test_a_table_is_only_read_to_its_own_end() -> None:
    table = np.arange(1000, dtype=np.int32)
    packed = pack(table)
    file = io.BytesIO(packed + b"the next table")
    into = np.empty(1000, np.int32)
    assert unpack(file, len(packed), into)
    assert file.read() == b"the next table"


@pytest.mark.parametrize("size", [999, 1001])
def test_a_table_of_another_size_is_not_taken(size: int) -> None:
    packed = pack(np.arange(1000, dtype=np.int32))
    assert not unpacked(packed, np.zeros(size, np.int32))[0]


def test_a_plain_table_is_read_as_it_is() -> None:
    table = np.arange(5, dtype="<i8")
    into = np.empty(5, np.int64)
    assert read_plain(io.BytesIO(table.tobytes()), 40, into)
    np.testing.assert_array_equal(into, table)
    assert not read_plain(io.BytesIO(table.tobytes()), 32, into)
    assert not read_plain(io.BytesIO(table.tobytes()[:-1]), 40, into)
