"""What is wrong shows as one clear sentence where a person sees it; the rest goes on, and sums stay exact.

docs/RELIABILITY.md lists which test shows which kind of bad input; here are those that need the whole federation.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from aggregator.members import pki
from cairn import codec
from cairn.enrolment import tls_files
from cairn.errors import CairnError, ChecksumMismatch, UnknownPlan, WindowClosed
from cairn.plan import MomentsPlan, Plan, fingerprint
from cairn.rpc import Identity, errors_from_wire, mtls_channel
from cairn.tally import Tally, zeros
from cairn.v1 import tallies_pb2, tallies_pb2_grpc
from deploy.processes import announced
from edge_node.outbox import Outbox
from tests.invoking import invoke
from tests.system.bad_images import BAD, counts, write
from tests.system.observing import Observed, assert_same, centrally, observed, study_of
from tests.system.seeing import dashboard, eventually, listed, page, refused, status

pytestmark = pytest.mark.slow
RESTLESS = "restless.ome.tif"
STAGES = ("moments", "ranges", "counts", "recovery", "codebook")


def good(seen: Observed) -> list[Any]:
    return [source for source in seen.sources() if source.id not in {*BAD, RESTLESS}]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tissue: Path) -> Iterator[Observed]:
    """A study that is done, though site-1 has every kind of bad image and one of site-2's never rests."""
    with observed(tmp_path_factory.mktemp("bad") / "all", tissue) as seen:
        spec = study_of(tissue, min_sites=2)
        for name, bad in BAD.items():
            bad.make(seen.running.site_folder("site-1") / "images" / name, spec.bands)
        restless = seen.running.site_folder("site-2") / "images" / RESTLESS
        write(restless, spec.bands, counts(spec.bands, side=512))  # takes many times longer to read than to change
        at_rest = threading.Event()
        toucher = threading.Thread(target=touch, args=(restless, at_rest), daemon=True)
        toucher.start()
        seen.create(spec)
        seen.wait_until("small", lambda state: state == "done")
        yield seen
        at_rest.set()
        toucher.join()


def touch(path: Path, until: threading.Event) -> None:
    """Change a file again and again."""
    while not until.wait(0.002):
        os.utime(path)


@pytest.mark.parametrize("name", BAD)
def test_a_bad_image_is_one_sentence_with_its_name_at_its_own_site(finished: Observed, name: str) -> None:
    [sentence] = [problem for problem in status(finished, "site-1")["problems"] if name in problem]
    assert BAD[name].detail in sentence
    assert name in page(finished, "site-1")


@pytest.mark.parametrize("name", BAD)
def test_the_operator_sees_the_kind_of_a_bad_image_and_not_its_name(finished: Observed, name: str) -> None:
    eventually(finished, "the site's report", lambda: len(listed(finished, "site-1")["problems"]) >= 3)
    assert any(BAD[name].kind in problem for problem in listed(finished, "site-1")["problems"])
    assert BAD[name].kind in dashboard(finished, "/sites")
    assert not any(name in problem for problem in listed(finished, "site-1")["problems"])
    assert name not in dashboard(finished, "/sites")


def test_a_file_that_changes_while_it_is_read_is_left_out_and_said(finished: Observed) -> None:
    [sentence] = status(finished, "site-2")["problems"]
    assert RESTLESS in sentence
    assert "changed after it was first seen or while it was read" in sentence
    assert "changed" in listed(finished, "site-2")["problems"][0]


@pytest.mark.parametrize("stage", STAGES)
def test_the_good_images_beside_bad_ones_are_counted_exactly(finished: Observed, stage: str) -> None:
    fingerprint, plan = finished.plans("small")[stage, 0]
    assert len(finished.uploads(fingerprint)) == 3
    assert_same(finished.merged("small", stage), centrally(plan, good(finished)))


@contextmanager
def tallies(seen: Observed, site: str) -> Iterator[tallies_pb2_grpc.TalliesStub]:
    """Speak to the aggregator as a site, with its own certificate."""
    address = announced(seen.running.state / "addresses.json")["address"]
    with mtls_channel(address, tls_files(identity(seen, site))) as channel, errors_from_wire():
        yield tallies_pb2_grpc.TalliesStub(channel)


def identity(seen: Observed, site: str) -> Path:
    return seen.running.site_folder(site) / "state" / "identity"


def whole(plan: str, data: bytes, digest: str) -> Iterator[tallies_pb2.UploadRequest]:
    """An upload of one message."""
    yield tallies_pb2.UploadRequest(fingerprint=bytes.fromhex(plan), data=data, digest=bytes.fromhex(digest))


def test_a_replayed_upload_is_confirmed_and_counted_once(finished: Observed) -> None:
    plan, _ = finished.plans("small")["moments", 0]
    before = [(row.id, row.site, row.digest) for row in finished.uploads(plan)]
    merged = finished.merged("small", "moments")
    digest = next(row.digest for row in finished.uploads(plan) if row.site == "site-1")
    with finished.store().open(digest) as file:
        data = file.read()
    with tallies(finished, "site-1") as stub:
        assert stub.Upload(whole(plan, data, digest), timeout=30).committed_size == len(data)
    with pytest.raises(WindowClosed, match="another tally of this site"), tallies(finished, "site-2") as stub:
        stub.Upload(whole(plan, data, digest), timeout=30)
    assert refused(finished, "WindowClosed")
    assert [(row.id, row.site, row.digest) for row in finished.uploads(plan)] == before
    assert_same(finished.merged("small", "moments"), merged)


def test_an_altered_upload_is_refused_and_the_true_one_taken(finished: Observed, tissue: Path, tmp_path: Path) -> None:
    finished.create(study_of(tissue, name="open", bands=("a-band-that-no-site-has",), min_sites=2))
    plan, published = finished.plans("open")["moments", 0]
    path = tmp_path / "true.tally"
    digest = codec.write_tally(path, Tally(bytes.fromhex(plan), zeros(published.stage))).hex()
    data = path.read_bytes()
    altered = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(ChecksumMismatch, match="send it again"), tallies(finished, "site-1") as stub:
        stub.Upload(whole(plan, altered, digest), timeout=30)
    own_digest = hashlib.sha256(altered).hexdigest()
    with pytest.raises(ChecksumMismatch, match="send it again"), tallies(finished, "site-1") as stub:
        stub.Upload(whole(plan, altered, own_digest), timeout=30)
    assert finished.uploads(plan) == []
    with tallies(finished, "site-1") as stub:
        assert stub.Upload(whole(plan, data, digest), timeout=30).committed_size == len(data)
    with pytest.raises(WindowClosed, match="another tally of this site"), tallies(finished, "site-1") as stub:
        stub.Upload(whole(plan, altered, own_digest), timeout=30)
    assert refused(finished, "ChecksumMismatch")
    assert [(row.site, row.digest) for row in finished.uploads(plan)] == [("site-1", digest)]


def test_a_tally_of_a_plan_that_the_aggregator_does_not_know_is_set_aside_and_said(finished: Observed) -> None:
    """As after an aggregator was restored from a backup that is older than the plan."""
    _, known = finished.plans("small")["moments", 0]
    assert isinstance(known.stage, MomentsPlan)
    unknown = Plan("forgotten", 0, known.stage)
    of = fingerprint(codec.encode_plan(unknown))
    finished.running.sites["site-3"].stop()
    outbox = Outbox(finished.running.site_folder("site-3") / "state" / "outbox")
    sealed = outbox.seal(unknown, Tally(of, zeros(unknown.stage)))
    finished.running.start_site("site-3")

    def said() -> list[str]:
        return [p for p in status(finished, "site-3")["problems"] if "forgotten, moments" in p]

    eventually(finished, "the site to say so", lambda: bool(said()))
    assert "was not taken: no plan" in said()[0]
    assert outbox.find(of) == ("parked", outbox.find(of)[1])
    assert sealed.fingerprint == of
    assert refused(finished, "UnknownPlan")
    with pytest.raises(UnknownPlan), tallies(finished, "site-3") as stub:
        stub.QueryUpload(tallies_pb2.QueryUploadRequest(fingerprint=of, digest=bytes(32)), timeout=30)


def test_a_site_with_a_wrong_certificate_is_told_so_and_comes_back_with_the_right_one(finished: Observed) -> None:
    files = tls_files(identity(finished, "site-3"))
    right = files.key.read_bytes(), files.certificate.read_bytes()
    another = pki.make_authority("demo", datetime.now(UTC))
    key = ec.generate_private_key(ec.SECP256R1())
    wrong = pki.issue(another, Identity("demo", "site", "site-3"), key.public_key(), datetime.now(UTC))
    finished.running.sites["site-3"].stop()
    files.key.write_bytes(pki.private_pem(key))
    files.certificate.write_bytes(pki.chain_pem(wrong, another))
    finished.running.start_site("site-3")

    def said() -> str:
        return " ".join(status(finished, "site-3")["problems"])

    sentence = "hangs up on this site's certificate: it is over or of another federation"
    eventually(finished, "the site to say so", lambda: sentence in said())
    assert "enrol again" in said()
    assert "hangs up on this site&#39;s certificate" in page(finished, "site-3")
    assert status(finished, "site-3")["connected"] is False
    finished.running.sites["site-3"].stop()
    files.key.write_bytes(right[0])
    files.certificate.write_bytes(right[1])
    finished.running.start_site("site-3")
    eventually(finished, "the site to be back", lambda: bool(status(finished, "site-3")["connected"]))


def test_an_expired_token_lets_nobody_in_and_says_what_to_do(finished: Observed, tmp_path: Path) -> None:
    profile = str(finished.running.profile)
    text = tmp_path / "invitation.txt"
    invoke(["aggregator", "invite", "late", "--valid-for", "1s", "--profile", profile, "--out", str(text)])
    end = datetime.now(UTC) + timedelta(seconds=1)
    config = tmp_path / "site.toml"
    config.write_text((finished.running.site_folder("site-1") / "site.toml").read_text())
    (tmp_path / "images").mkdir()
    eventually(finished, "the end of the token", lambda: datetime.now(UTC) > end)
    with pytest.raises(CairnError, match=r"the enrolment token expired on .*; ask the operator for a new invitation"):
        invoke(["edge", "enrol", "--config", str(config), "--invitation", str(text)])
    assert listed(finished, "late")["state"] == "invited"
    assert not (tmp_path / "state" / "identity" / "certificate.pem").exists()


def test_a_revoked_site_is_told_why_and_the_others_go_on_without_it(finished: Observed) -> None:
    before = finished.merged("small", "counts")
    reason = "the machine was stolen"
    invoke(["aggregator", "revoke", "site-3", "--reason", reason, "--profile", str(finished.running.profile)])
    eventually(finished, "the site to know", lambda: reason in " ".join(status(finished, "site-3")["problems"]))
    assert reason in page(finished, "site-3")
    assert "Not admitted" in page(finished, "site-3")
    assert listed(finished, "site-3")["state"] == "revoked"
    assert "revoked" in dashboard(finished, "/sites")

    hand = finished.hands[0]
    shutil.copy(hand.sources[0].paths[0], finished.running.site_folder(hand.site) / "images" / "later.ome.tif")
    finished.extend("small")
    finished.wait_until("small", lambda state: state == "done")
    here = [source for source in good(finished) if "site-3" not in source.paths[0].parts]
    later = [source for source in here if source.id == "later.ome.tif"]
    plans = finished.plans("small")
    assert_same(finished.merged("small", "counts", 1), centrally(plans["counts", 1][1], later))
    assert_same(finished.merged("small", "recovery", 1), centrally(plans["recovery", 1][1], here))
    assert_same(finished.merged("small", "counts"), before)  # what the site had given stays
