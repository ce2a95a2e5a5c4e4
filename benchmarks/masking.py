"""What a masked sum costs: one site among n, and the aggregator, beside the plain path and Flower's SecAgg+.

n up to 1,000 cannot be run whole here, so the cost is measured in its parts, each by the real code, and added up:

- One site's protocol is measured whole among n members. The others' messages are made beforehand, by the same code, but
  for deals that do not concern it (n over 50), whose boxes nobody opens: those are signed with contents of no meaning.
- Masks are measured on `PIECE` bytes with as many keystreams as the site has neighbours, and scaled to the tally.
- The aggregator: its checks of one site, and the joining of one site's shares, times n; keystreams as above.
- Flower's client functions (1.41) are called as they come, with as many neighbours, on `VALUES` numbers, and scaled.

Seconds are of one processor, in `time.process_time`; bytes are of the messages' encodings, without gRPC and TLS.
"""

import hashlib
import importlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common import ndarrays_to_parameters
from flwr.common.secure_aggregation.crypto.symmetric_encryption import encrypt, generate_shared_key
from flwr.common.secure_aggregation.secaggplus_constants import Key
from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen, share_keys_plaintext_concat
from flwr.supercore.primitives.asymmetric import bytes_to_private_key, bytes_to_public_key

from aggregator.members import pki
from cairn.codec import write_tally
from cairn.masking import server, site
from cairn.masking.canonical import digest, encode
from cairn.masking.checks import Agreed, Joined, agreed, joined
from cairn.masking.keys import sign
from cairn.masking.memory import Memory
from cairn.masking.messages import (
    Circle,
    Deal,
    Dealing,
    Receipt,
    Roster,
    Session,
    SignedDeal,
    SignedReceipt,
    SignedVote,
    Survivors,
    Vote,
    Votes,
)
from cairn.masking.rules import choose_holders, neighbours
from cairn.masking.shares import join, split
from cairn.masking.stream import Mask, to_words
from cairn.rpc import Identity
from cairn.tally import Tally

MEMBERS: Final = (3, 10, 50, 100, 1000)
TALLIES: Final = (50, 200)  # MB of 64-bit words
PIECE: Final = 16 << 20  # bytes on which masks are measured
VALUES: Final = 250_000  # numbers on which Flower is measured
# The package hides the module behind its function of the same name.
flower: Any = importlib.import_module("flwr.client.mod.secure_aggregation.secaggplus_mod")
LOST: Final = 10  # of a hundred sites, in the line of the middle's that has losses

Line = dict[str, Any]


@dataclass(frozen=True)
class Protocol:
    """What the messages of one session cost.

    seconds    of one site, all its steps but the masking
    up, down   bytes of one site: `down` with what a stream repeats, as it shows a session whole whenever it changes
    middle     seconds of the aggregator for one site's messages, and for joining one site's shares
    keystreams that mask one site: its neighbours and its own
    """

    seconds: float
    up: int
    down: int
    middle: float
    keystreams: int


def run() -> Iterator[Line]:
    """Measure every number of members, for both tallies."""
    plain = {megabytes: plain_path(megabytes) for megabytes in TALLIES}
    for megabytes, (seconds, size) in plain.items():
        yield line(f"masking/plain/{megabytes}MB/site", seconds, "s")
        yield line(f"masking/plain/{megabytes}MB/site_bytes", size, "B")
    added = adding_seconds()
    for members in MEMBERS:
        ours = protocol(members)
        masks = masking_seconds(ours.keystreams)
        one_stream = (masks - masking_seconds(1)) / max(1, ours.keystreams - 1)
        theirs, generated = flower_seconds(ours.keystreams - 1)
        yield line(f"masking/{members}/protocol/site", ours.seconds, "s")
        yield line(f"masking/{members}/protocol/site_up", ours.up, "B")
        yield line(f"masking/{members}/protocol/site_down", ours.down, "B")
        for megabytes in TALLIES:
            size = megabytes * 1_000_000
            pieces, thousands = size / PIECE, size / 8 / VALUES
            mine = ours.seconds + masks * pieces
            lost = members * LOST // 100
            sums = (added + one_stream) * pieces * (members - lost) + ours.middle * members
            again = one_stream * pieces * lost * (ours.keystreams - 1) * (members - lost) / max(1, members - 1)
            whole = (added + one_stream) * pieces * members + ours.middle * members
            name = f"masking/{members}/{megabytes}MB"
            yield line(f"{name}/site", mine, "s", plain[megabytes][0], "plain")
            yield line(f"{name}/site", mine, "s", theirs * thousands, "flower_secaggplus")
            yield line(f"{name}/site_bytes", ours.up + size, "B", plain[megabytes][1], "plain")
            yield line(f"{name}/aggregator", whole, "s", generated * thousands * members, "flower_secaggplus_masks")
            yield line(f"{name}/aggregator_{LOST}_percent_lost", sums + again, "s")


def line(name: str, value: float, unit: str, other: float = 0.0, against: str = "") -> Line:
    """Make a line; the ratio is the other's cost over ours."""
    return {"name": name, "value": value, "unit": unit, "ratio": other / value if other else None, "against": against}


def seconds(work: Callable[[], object], times: int = 3) -> float:
    """Return the best of some turns in seconds of the processor."""
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return best


def protocol(members: int) -> Protocol:
    """Take one site through a session among so many."""
    session = Session(bytes(32), "counts", 0, 1, 1000, 64, 400, 100, ())
    names = [f"hospital-{number:04}" for number in range(members)]
    keys = [ec.derive_private_key(7 + number, ec.SECP256R1()) for number in range(members)]
    identities = {name: key.public_key() for name, key in zip(names, keys, strict=True)}
    seeds = [hashlib.sha256(f"{number}".encode()).digest() for number in range(members)]
    memories = [site.begin(session, name, seed) for name, seed in zip(names, seeds, strict=True)]
    signed = [site.advertise(memory, key) for memory, key in zip(memories, keys, strict=True)]
    roster = Roster(session, tuple(signed))
    on, spent = agreed(roster), {"advertise": seconds(lambda: site.advertise(memories[0], keys[0]), 1)}

    start = time.process_time()
    memory, dealing = site.deal(memories[0], roster, keys[0], identities, least=3)
    spent["deal"] = time.process_time() - start
    dealings = {0: dealing, **{n: dealt(on, memories[n], keys[n], n, dealing) for n in range(1, members)}}
    within = joined(Circle(on.digest, tuple(one.deal for one in dealings.values())))
    delivery = server.make_delivery(within, dealings, 0)

    start = time.process_time()
    memory = site.take(memory, delivery, identities)
    spent["take"] = time.process_time() - start
    memory = site.fix(memory, bytes(32), (session.fingerprint,), ())
    memory, own = site.confirm(memory, bytes(32), keys[0])
    survivors = Survivors((own, *(receipt(on, within, n, keys[n]) for n in range(1, members))))

    start = time.process_time()
    memory, vote = site.vote(memory, survivors, keys[0], identities, least=3)
    spent["vote"] = time.process_time() - start
    votes = Votes(tuple(SignedVote(b, sign(keys[b.voter], encode(b))) for b in ballots(vote.body, on)))

    start = time.process_time()
    reveal = site.reveal(memory, votes, identities)
    spent["reveal"] = time.process_time() - start
    up = sum(len(encode(one)) for one in (signed[0], dealing, own, vote, reveal))
    return Protocol(
        sum(spent.values()),
        up,
        shown(session, roster, delivery, survivors, votes),
        middle_seconds(on, within, dealings, own, vote, identities),
        len(neighbours(within.circle.deals)[0]) + 1,
    )


def dealt(on: Agreed, memory: Memory, key: ec.EllipticCurvePrivateKey, number: int, like: Dealing) -> Dealing:
    """Make another site's deal: a real one when it concerns the site that is measured, else with contents of no use."""
    holders = choose_holders(hashlib.sha256(f"holders {number}".encode()).digest(), number, on.numbers)
    if on.numbers.degree == on.numbers.members - 1 or 0 in holders:
        members = [signed.body.site for signed in on.roster.members]
        known = {name: key.public_key() for name in members}  # its own checks are not what is measured
        with unchecked():
            return site.deal(memory, on.roster, key, known, least=3)[1]
    body = Deal(on.digest, number, holders, digest(like.contents))
    return Dealing(SignedDeal(body, sign(key, encode(body))), like.contents)


class unchecked:  # noqa: N801 - used as a word in a with statement
    """Leave out signature checks, of sites that are not measured."""

    def __enter__(self) -> None:
        from cairn.masking import checks  # noqa: PLC0415 - what is changed here is changed back

        self._checks, self._verify = checks, vars(checks)["verify"]
        vars(checks)["verify"] = lambda *_: None

    def __exit__(self, *_: object) -> None:
        vars(self._checks)["verify"] = self._verify


def receipt(on: Agreed, within: Joined, member: int, key: ec.EllipticCurvePrivateKey) -> SignedReceipt:
    """Make another site's receipt."""
    body = Receipt(on.digest, within.digest, member, (on.roster.session.fingerprint,), bytes(32))
    return SignedReceipt(body, sign(key, encode(body)))


def ballots(vote: Vote, on: Agreed) -> list[Vote]:
    """Make the equal votes of as many sites as are needed."""
    return [replace(vote, voter=voter) for voter in range(on.numbers.threshold)]


def shown(session: Session, roster: Roster, delivery: Any, survivors: Survivors, votes: Votes) -> int:
    """Add up what the stream shows a site: all of a session, anew after each of its steps."""
    authority = pki.make_authority("bench", datetime.now(UTC))
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = pki.issue(authority, Identity("bench", "site", "hospital-0000"), key.public_key(), datetime.now(UTC))
    chains = len(pki.chain_pem(leaf, authority)) * len(roster.members)
    parts = [
        len(encode(session)),
        len(encode(roster)) + chains,
        *(len(encode(m)) for m in (delivery, survivors, votes)),
    ]
    return sum(sum(parts[: step + 1]) for step in range(len(parts)))


def middle_seconds(
    on: Agreed, within: Joined, dealings: dict[int, Dealing], own: SignedReceipt, vote: SignedVote, identities: Any
) -> float:
    """Measure what the aggregator does for one site: its checks, its delivery, and the joining of its shares."""
    members, needed = tuple(range(on.numbers.members)), on.numbers.shares
    points = tuple(range(1, on.numbers.degree + 2))
    shares = dict(zip(points, split(bytes(range(32)), points, needed, bytes(32)), strict=True))
    return (
        seconds(lambda: server.accept_dealing(on, dealings[0], identities))
        + seconds(lambda: encode(server.make_delivery(within, dealings, 0)), 1)
        + seconds(lambda: server.accept_receipt(on, within, own, bytes(32), 8000, identities))
        + seconds(lambda: server.accept_vote(on, within.digest, members, vote, identities))
        + seconds(lambda: join(shares, needed))
    )


def masking_seconds(keystreams: int) -> float:
    """Measure the masking of `PIECE` bytes: cells to words, keystreams, SHA-256 before and after, and the file."""
    cells = np.arange(PIECE // 8, dtype=np.int64)
    keys = [hashlib.sha256(f"{n}".encode()).digest() for n in range(keystreams)]

    def work() -> None:
        out, words = io.BytesIO(), to_words(cells, 64, 1000)
        hashlib.sha256(words.data).digest()
        Mask(keys[::2], keys[1::2], 64).apply(words)
        hashlib.sha256(words.data).digest()
        out.write(words.data)

    return seconds(work)


def adding_seconds() -> float:
    """Measure what the aggregator does with `PIECE` bytes of one site: SHA-256, and the addition."""
    data, total = bytes(PIECE), np.zeros(PIECE // 8, np.uint64)

    def work() -> None:
        nonlocal total
        hashlib.sha256(data).digest()
        total += np.frombuffer(data, np.uint64)

    return seconds(work)


def plain_path(megabytes: int) -> tuple[float, int]:
    """Measure sealing a tally as it is sent in plain; returns seconds and bytes.

    Counts like those of a sketch with about 50 keys a cell: what packs well at other loads packs otherwise.
    """
    rng = np.random.default_rng(5)
    table = rng.integers(-50, 51, megabytes * 1_000_000 // 8).astype(np.int64)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "one.tally"
        took = seconds(lambda: write_tally(path, Tally(bytes(32), {"sketch_36": table})), 1)
        return took, path.stat().st_size


def flower_seconds(beside: int) -> tuple[float, float]:
    """Measure Flower's client with so many neighbours on `VALUES` numbers; returns it and one mask's seconds."""
    sites = beside + 1
    states = {n: flower.SecAggPlusState() for n in range(1, sites + 1)}
    asked = {
        Key.SAMPLE_NUMBER: sites, Key.SHARE_NUMBER: sites, Key.THRESHOLD: sites // 2 + 1, Key.CLIPPING_RANGE: 8.0,
        Key.TARGET_RANGE: 1 << 20, Key.MOD_RANGE: 1 << 32, Key.MAX_WEIGHT: 1000.0,
    }  # fmt: skip
    keys = {}
    for n, state in states.items():
        state.nid = n
        found: Any = flower._setup(state, dict(asked))
        keys[str(n)] = [found[Key.PUBLIC_KEY_1], found[Key.PUBLIC_KEY_2]]
    start = time.process_time()
    flower._share_keys(states[1], dict(keys))
    took = time.process_time() - start
    share = states[1].rd_seed_share_dict[1]  # in the others' boxes, which cost them as much: any share of its length
    boxes = {}
    for n in range(2, sites + 1):
        shared = generate_shared_key(bytes_to_private_key(states[n].sk2), bytes_to_public_key(states[1].pk2))
        boxes[n] = encrypt(shared, share_keys_plaintext_concat(n, 1, share, share))
    values = np.random.default_rng(1).normal(0, 0.1, VALUES).astype(np.float32)
    configs: Any = {Key.CIPHERTEXT_LIST: list(boxes.values()), Key.SOURCE_LIST: list(boxes)}
    start = time.process_time()
    flower._collect_masked_vectors(states[1], configs, 100, ndarrays_to_parameters([values]))
    took += time.process_time() - start
    return took, seconds(lambda: pseudo_rand_gen(bytes(32), 1 << 32, [(VALUES,)]))
