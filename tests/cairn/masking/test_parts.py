"""The parts of secure aggregation: canonical bytes, shares, keystreams, fixed point; each against its definition."""

import hmac
import json
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from cairn.errors import Diverged, IdentityError, MaskingError
from cairn.masking import keys, shares
from cairn.masking.canonical import decode, digest, encode
from cairn.masking.fixed_point import FixedPoint
from cairn.masking.memory import Memory, mask_key, self_seed
from cairn.masking.messages import Delivery, Receipt, Roster, Session, Share, Survivors, Votes
from cairn.masking.rules import neighbours, pair
from cairn.masking.stream import Mask, cell_limit, from_words, to_words

from ...golden.make_masking import CELLS, golden
from .federation import Federation, a_session

GOLDEN = Path(__file__).parents[2] / "golden" / "masking_1.json"
MESSAGES = (Session, Roster, Delivery, Receipt, Survivors, Votes, Memory)


# ---- golden


def test_a_session_s_messages_keys_and_masked_words_are_the_golden_ones() -> None:
    """A change here is another protocol: a new version and an ADR, as old sites speak the old one."""
    assert golden() == json.loads(GOLDEN.read_text())


def _hkdf(secret: bytes, salt: bytes, info: str) -> bytes:
    key = hmac.digest(salt, secret, "sha256")
    return hmac.digest(key, f"cairn.masking/1 {info}".encode() + b"\x01", "sha256")


def _words(key: bytes, count: int) -> np.ndarray:
    """AES-256-CTR by hand: the block cipher over a big-endian counter from 0."""
    block = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    stream = b"".join(block.update(n.to_bytes(16, "big")) for n in range(count // 2 + 1))
    return np.frombuffer(stream, "<u8")[:count]


def test_masked_words_are_those_of_the_definition_worked_out_by_hand() -> None:
    federation = Federation(3, words=9)
    federation.run(CELLS)
    memory, circle = federation.memories[1], federation.within.digest
    expected = CELLS[1].view(np.uint64) + _words(_hkdf(self_seed(memory, federation.on), circle, "self mask"), 9)
    private = X25519PrivateKey.from_private_bytes(mask_key(memory))
    for other, sign in ((0, -1), (2, 1)):
        theirs = X25519PublicKey.from_public_bytes(federation.roster.members[other].body.mask_key)
        key = _hkdf(private.exchange(theirs), circle, pair(1, other))
        expected = expected + _words(key, 9) if sign > 0 else expected - _words(key, 9)
    assert np.array_equal(federation.masked[1], expected)


# ---- canonical bytes


def test_a_message_reads_back_as_it_was_written_and_its_name_is_part_of_it() -> None:
    receipt = Receipt(b"a", b"", 3, (b"x", b"yy"), bytes(32))
    assert decode(Receipt, encode(receipt)) == receipt
    with pytest.raises(MaskingError):
        decode(Session, encode(receipt))
    assert encode(receipt)[:28] == b"\x17\x00\x00\x00cairn.masking/1 Receipt\x01"


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_bytes_that_decode_are_the_one_encoding_of_what_they_decode_to(data) -> None:
    kind = data.draw(st.sampled_from(MESSAGES))
    whole = encode(a_session() if kind is Session else Survivors(()))
    raw = data.draw(st.binary(max_size=60))
    cut = data.draw(st.integers(0, len(whole)))
    for mutated in (raw, whole[:cut] + raw, whole[:cut] + raw + whole[cut + len(raw) :]):
        try:
            message = decode(kind, mutated)
        except MaskingError:
            continue
        assert encode(message) == mutated


def test_a_false_count_asks_for_no_memory() -> None:
    bomb = encode(Survivors(()))[:-4] + (2**32 - 1).to_bytes(4, "little")
    with pytest.raises(MaskingError, match="no Survivors message"):
        decode(Survivors, bomb + bytes(100))


# ---- shares


def test_the_field_s_modulus_is_prime_and_no_smaller_prime_holds_every_secret() -> None:
    def composite(n: int) -> bool:
        """Tell by Miller and Rabin with forty bases."""
        odd = (n - 1) & -(n - 1)
        for base in range(2, 42):
            x = pow(base, (n - 1) // odd, n)
            power = 1
            while power < odd and x not in {1, n - 1}:
                x, power = x * x % n, power * 2
                if x == 1:
                    return True
            if x != n - 1 and not (x == 1 and power == 1):
                return True
        return False

    assert not composite(shares.PRIME)
    assert all(composite(n) for n in range(2**256 + 1, shares.PRIME, 2))


@given(st.binary(min_size=32, max_size=32), st.integers(1, 9), st.data())
@settings(max_examples=50, deadline=None)
def test_any_threshold_of_shares_joins_to_the_secret(secret: bytes, threshold: int, data) -> None:
    points = data.draw(st.lists(st.integers(1, 1000), min_size=threshold, max_size=12, unique=True))
    dealt = dict(zip(points, shares.split(secret, tuple(points), threshold, bytes(32)), strict=True))
    some = data.draw(st.permutations(points))[:threshold]
    assert shares.join({point: dealt[point] for point in some}, threshold) == secret


def test_fewer_shares_than_the_threshold_fit_every_secret() -> None:
    """Two of three shares: for any secret there is a polynomial through them."""
    dealt = shares.split(b"s" * 32, (1, 2, 3), 3, b"k" * 32)
    p = shares.PRIME
    y1, y2 = (int.from_bytes(share, "little") for share in dealt[:2])
    for secret in (0, 1, 2**255):
        # f(x) = secret + c₁x + c₂x² through (1, y₁), (2, y₂)
        c2 = (y2 - 2 * y1 + secret) * pow(2, -1, p) % p
        c1 = (y1 - secret - c2) % p
        y3 = (secret + 3 * c1 + 9 * c2) % p
        forged = {1: dealt[0], 2: dealt[1], 3: y3.to_bytes(33, "little")}
        assert shares.join(forged, 3) == secret.to_bytes(32, "little")


def test_too_few_short_or_foreign_shares_are_refused() -> None:
    dealt = shares.split(bytes(32), (1, 2), 2, bytes(32))
    over = (shares.PRIME - 1).to_bytes(33, "little")  # both: the constant polynomial of a secret of 33 bytes
    for wrong in (
        {1: dealt[0]},
        {1: dealt[0], 2: dealt[1][:-1]},
        {1: b"\xff" * 33, 2: dealt[1]},
        {1: over, 2: over},
    ):
        with pytest.raises(MaskingError):
            shares.join(wrong, 2)


# ---- keystreams


def test_deriving_is_hkdf_as_worked_out_by_hand() -> None:
    assert keys.derive(b"secret", b"salt", "some use") == _hkdf(b"secret", b"salt", "some use")


@given(st.integers(1, 60_000), st.integers(0, 2**16), st.sampled_from([32, 64]))
@settings(max_examples=25, deadline=None)
def test_a_mask_taken_up_again_in_the_middle_goes_on_as_if_never_broken(size: int, cut: int, bits: int) -> None:
    start = min(cut, size) // 4 * 4
    plus, minus = [bytes([1]) * 32, bytes([2]) * 32], [bytes([3]) * 32]
    whole, parts = (to_words(np.arange(size, dtype=np.int64), bits, 3) for _ in range(2))
    Mask(plus, minus, bits).apply(whole)
    Mask(plus, minus, bits).apply(parts[:start])
    Mask(plus, minus, bits, start).apply(parts[start:])
    assert np.array_equal(whole, parts)
    Mask(minus, plus, bits).apply(whole)
    assert np.array_equal(from_words(whole), np.arange(size))


def test_a_mask_does_not_start_within_a_block_of_the_cipher() -> None:
    with pytest.raises(MaskingError, match="multiple of 16 bytes"):
        Mask([bytes(32)], [], 64, 3)


@pytest.mark.parametrize("bits", [32, 64])
def test_cells_at_the_limit_add_up_without_wrapping_round(bits: int) -> None:
    limit = cell_limit(bits, 3)
    words = to_words(np.array([limit, -limit], np.int64), bits, 3)
    assert from_words(words + words + words).tolist() == [3 * limit, -3 * limit]
    for wrong in (limit + 1, -limit - 1):
        with pytest.raises(MaskingError):
            to_words(np.array([wrong], np.int64), bits, 3)


def test_only_two_moduli_are_known() -> None:
    with pytest.raises(MaskingError, match=r"2\^16"):
        to_words(np.zeros(1, np.int64), 16, 3)


def test_a_forged_signature_names_whom_it_is_forged_for() -> None:
    federation = Federation(3)
    signature = keys.sign(federation.keys[0], b"message")
    keys.verify(federation.keys[0].public_key(), b"message", signature, "site 0")
    assert signature == keys.sign(federation.keys[0], b"message")
    with pytest.raises(IdentityError, match="site 1"):
        keys.verify(federation.keys[1].public_key(), b"message", signature, "site 1")


def test_a_box_opens_with_its_key_and_context_alone() -> None:
    box = keys.seal(b"k" * 32, b"shares", b"roster")
    assert keys.unseal(b"k" * 32, box, b"roster", "site 0") == b"shares"
    for key, sealed, context in (
        (bytes(32), box, b"roster"),
        (b"k" * 32, box, b"other"),
        (b"k" * 32, box[:3], b"roster"),
    ):
        with pytest.raises(MaskingError, match="site 0"):
            keys.unseal(key, sealed, context, "site 0")


# ---- fixed point


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_the_decoded_mean_is_within_the_stated_bound_of_the_exact_weighted_mean(data) -> None:
    form = FixedPoint(data.draw(st.integers(0, 24)), data.draw(st.sampled_from([0.5, 1.0, 8.0])), 10_000)
    sites, size = data.draw(st.integers(1, 6)), 12
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = (rng.standard_normal((sites, size)) * form.clip * 0.7).astype(np.float32)
    weights = rng.integers(1, 10_000, sites)
    form.check(sites)
    total = sum(form.encode(value, int(weight)) for value, weight in zip(values, weights, strict=True))
    mean, weight = form.decode(total)
    clipped = np.clip(values, -form.clip, form.clip).astype(np.longdouble)
    exact = (clipped * weights[:, None]).sum(axis=0) / weights.sum()
    assert weight == weights.sum()
    assert np.abs(mean - exact).max() <= form.error_bound(sites, weight)


def test_a_value_on_the_grid_is_carried_exactly_and_one_beyond_the_clip_is_clipped() -> None:
    form = FixedPoint(8, 2.0, 1)
    mean, weight = form.decode(form.encode(np.array([0.25, -1.5, 3.0, -7.0], np.float32), 1))
    assert (mean.tolist(), weight) == ([0.25, -1.5, 2.0, -2.0], 1)


def test_updates_that_are_not_finite_or_weigh_too_much_are_not_sent() -> None:
    form = FixedPoint(16, 1.0, 10)
    with pytest.raises(Diverged):
        form.encode(np.array([np.nan], np.float32), 1)
    for weight in (0, -1, 11):
        with pytest.raises(MaskingError, match="weight"):
            form.encode(np.zeros(1, np.float32), weight)
    with pytest.raises(MaskingError, match="no site's update"):
        form.decode(np.zeros(2, np.int64))


def test_forms_that_cannot_be_summed_exactly_are_refused() -> None:
    for wrong in ((-1, 1.0, 1), (41, 1.0, 1), (8, 0.0, 1), (8, 0.1, 1), (8, float("inf"), 1), (8, 1.0, 2**30)):
        with pytest.raises(MaskingError):
            FixedPoint(*wrong)
    FixedPoint(20, 1.0, 2**29).check(1000)
    with pytest.raises(MaskingError, match="64 bits"):
        FixedPoint(30, 8.0, 2**29).check(1000)


def test_model_updates_go_through_the_masks_as_tallies_do() -> None:
    form = FixedPoint(20, 4.0, 1000)
    updates = np.random.default_rng(5).standard_normal((3, 8)).astype(np.float32)
    weights = (10, 20, 30)
    cells = [form.encode(update, weight) for update, weight in zip(updates, weights, strict=True)]
    mean, weight = form.decode(Federation(3, words=9).run(cells))
    assert weight == 60
    assert np.abs(mean - np.average(updates.astype(float), axis=0, weights=weights)).max() <= form.error_bound(3, 60)


def test_the_graph_joins_dealers_with_their_holders_both_ways() -> None:
    federation = Federation(4, words=1)
    federation.enlist()
    federation.deal([0, 1, 3])
    everyone = frozenset({0, 1, 3})
    assert neighbours(federation.within.circle.deals) == {n: everyone - {n} for n in everyone}
    assert digest(Share(b"", 0, 0, "self", b"")) != digest(Share(b"", 0, 0, "key", b""))
