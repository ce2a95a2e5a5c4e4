"""Every RPC of cairn.v1, with every role, as the descriptors list them; and streams that outlive a member."""

import importlib
import pkgutil
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import grpc
import pytest

from aggregator.members import pki
from aggregator.members.trainer import admit_trainer
from aggregator.server import OPEN, ROLES
from cairn import rpc, v1
from cairn.enrolment import tls_files
from cairn.errors import CairnError, NotEnrolled, Unreachable, WrongRole
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire, mtls_channel, tls_channel
from cairn.v1 import (
    masking_pb2,
    masking_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    plans_pb2,
    plans_pb2_grpc,
)

NOBODY, SITE, OPERATOR, TRAINER = frozenset(), {"site"}, {"operator"}, {"trainer"}
# The rule of every RPC, written down a second time: one that is added without a line here fails the test.
WHO = {
    "cairn.v1.Edge": {"Status": NOBODY},  # on a site's own machine, never at the aggregator
    "cairn.v1.Enrolment": {"Enrol": NOBODY},  # on the port without client certificates
    "cairn.v1.Renewal": {"Renew": SITE | OPERATOR},
    "cairn.v1.Plans": dict.fromkeys(("Watch", "Answer", "Report"), SITE),
    "cairn.v1.Tallies": dict.fromkeys(("QueryUpload", "Upload", "FetchMerged"), SITE),
    "cairn.v1.Masking": dict.fromkeys(("Follow", "Advertise", "Deal", "Vote", "Reveal"), SITE),
    "cairn.v1.Sites": dict.fromkeys(("InviteSite", "RevokeSite", "ListSites"), OPERATOR),
    "cairn.v1.Studies": dict.fromkeys(
        ("CreateStudy", "ListStudies", "ShowStudy", "ApproveStudy", "ExtendStudy", "ExportStudy"), OPERATOR
    ),
    "cairn.v1.Runs": dict.fromkeys(
        (
            "CreateRun", "ListRuns", "ShowRun", "StopRun", "ResumeRun", "ReadLog", "FetchCheckpoint", "FetchJournal",
            "GiveWeights",
        ),
        OPERATOR,
    ),
    "cairn.v1.Training": dict.fromkeys(
        ("ListNodes", "ClaimRun", "PublishReplay", "MergeReplay", "ReportRun", "FetchWeights"), TRAINER
    ),
}  # fmt: skip


def services():
    """Return the descriptors of all services of cairn.v1."""
    found = {}
    for module in pkgutil.iter_modules(v1.__path__):
        if module.name.endswith("_pb2"):
            for service in importlib.import_module(f"cairn.v1.{module.name}").DESCRIPTOR.services_by_name.values():
                found[service.full_name] = service
    return found


def test_every_rpc_has_a_rule_and_no_rule_is_of_an_rpc_that_is_gone() -> None:
    assert {name: {method.name for method in service.methods} for name, service in services().items()} == {
        name: set(methods) for name, methods in WHO.items()
    }
    for name, methods in WHO.items():
        for roles in methods.values():
            assert ROLES.get(name, NOBODY) == roles


def called(channel: grpc.Channel, service: str, method) -> Exception | None:
    """Call a method with an empty message, or an empty stream; return what came of it."""
    kind = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    call = getattr(channel, kind)(f"/{service}/{method.name}")
    try:
        with errors_from_wire():
            answer = call(iter([b""]) if method.client_streaming else b"", timeout=5)
            if method.server_streaming:
                next(iter(answer), None)
                answer.cancel()
    except CairnError as error:
        return error
    return None


@pytest.fixture
def members(running, clock) -> Iterator[dict[str, grpc.Channel]]:
    """Channels of one member of each role."""
    address = running.aggregator.addresses.address
    folder = running.folder / "trainer"
    authority = pki.load_authority("tissue", running.folder / "pki")
    admit_trainer(running.aggregator.engine, authority, folder, clock())
    with (
        mtls_channel(address, running.join("north")) as site,
        operator_channel(running.profile) as operator,
        mtls_channel(address, tls_files(folder)) as trainer,
    ):
        yield {"site": site, "operator": operator, "trainer": trainer}


def test_every_rpc_admits_the_roles_of_its_rule_and_no_other(running, members) -> None:
    for name, service in services().items():
        for method in service.methods:
            for role, channel in members.items():
                came = called(channel, name, method)
                what = f"{role} calls {name}/{method.name}: {came!r}"
                if name not in ROLES:
                    assert "unimplemented" in str(came), what
                elif role in WHO[name][method.name]:
                    assert not isinstance(came, WrongRole | NotEnrolled), what
                else:
                    assert isinstance(came, WrongRole), what


def test_without_a_certificate_nothing_is_answered_but_enrolment(running) -> None:
    ca = (running.profile / "ca.pem").read_bytes()
    with (
        tls_channel(running.aggregator.addresses.enrolment, ca) as door,
        tls_channel(running.aggregator.addresses.address, ca) as inside,
    ):
        for name, service in services().items():
            for method in service.methods:
                at_door = called(door, name, method)
                assert at_door is not None
                assert (name in OPEN) != ("unimplemented" in str(at_door)), f"{name}/{method.name}: {at_door!r}"
        listed = services()["cairn.v1.Sites"].methods_by_name["ListSites"]
        assert isinstance(called(inside, "cairn.v1.Sites", listed), Unreachable)  # no handshake


def test_every_kind_of_open_stream_ends_soon_after_its_member_is_revoked(running, clock) -> None:
    """Watch is tested elsewhere: it hears of it by itself. These wait for something else."""
    address = running.aggregator.addresses.address
    with (
        mtls_channel(address, running.join("north")) as site,
        mtls_channel(address, running.join("ada", "operator")) as operator,
        mtls_channel(address, running.join("south")) as other,
    ):
        follow = masking_pb2_grpc.MaskingStub(site).Follow(masking_pb2.FollowRequest(), timeout=60)
        kept = masking_pb2_grpc.MaskingStub(other).Follow(masking_pb2.FollowRequest(), timeout=60)
        next(follow), next(kept)
        for name in ("north", "ada"):
            running.revoke(name)
        began = time.monotonic()
        with pytest.raises(Unreachable, match="cancelled"), errors_from_wire():
            next(follow)
        assert time.monotonic() - began < 8
        with pytest.raises(CairnError, match="was revoked"), errors_from_wire():
            operations_pb2_grpc.SitesStub(operator).ListSites(operations_pb2.ListSitesRequest(), timeout=10)
        assert kept.is_active()
        kept.cancel()


def test_an_open_stream_ends_when_its_certificate_does(running, clock) -> None:
    with mtls_channel(running.aggregator.addresses.address, running.join("north")) as site:
        follow = masking_pb2_grpc.MaskingStub(site).Follow(masking_pb2.FollowRequest(), timeout=60)
        next(follow)
        clock.advance(timedelta(days=400))
        with pytest.raises(Unreachable, match="cancelled"), errors_from_wire():
            next(follow)


def test_a_member_that_calls_too_often_is_told_to_wait_and_others_are_not(running, monkeypatch) -> None:
    monkeypatch.setattr(rpc, "CALLS_AT_ONCE", 5.0)
    monkeypatch.setattr(running.aggregator._admission, "_rate", 0.5)
    running.aggregator._admission._allowance.clear()
    address = running.aggregator.addresses.address
    with mtls_channel(address, running.join("north")) as north, mtls_channel(address, running.join("south")) as south:

        def report() -> None:
            with errors_from_wire():
                plans_pb2_grpc.PlansStub(north).Report(plans_pb2.ReportRequest(), timeout=10)

        for _ in range(5):
            report()
        with pytest.raises(Unreachable, match="north begins more than"):
            report()
        with errors_from_wire():
            plans_pb2_grpc.PlansStub(south).Report(plans_pb2.ReportRequest(), timeout=10)


SERVE = """
import sys, datetime, ssl, socket
from aggregator.members import pki
from cairn.rpc import Identity, ServerTls, server, server_credentials
from cryptography.hazmat.primitives.asymmetric import ec
now = datetime.datetime.now(datetime.UTC)
ca, key = pki.make_authority("tissue", now), ec.generate_private_key(ec.SECP256R1())
leaf = pki.issue(ca, Identity("tissue", "aggregator", "a"), key.public_key(), now, hosts=["127.0.0.1"])
tls = ServerTls(ca.certificate_pem, pki.chain_pem(leaf, ca), pki.private_pem(key))
served = server([], 4)
port = served.add_secure_port("127.0.0.1:0", server_credentials(lambda: tls, ask_client=False))
served.start()
for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
    context = ssl.create_default_context(cadata=ca.certificate_pem.decode())
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    with socket.create_connection(("127.0.0.1", port)) as line:
        try:
            print(version.name, context.wrap_socket(line, server_hostname="127.0.0.1").version())
        except (ssl.SSLError, OSError):
            print(version.name, "refused")
served.stop(0)
"""


def test_the_servers_speak_tls_1_3_alone(tmp_path: Path) -> None:
    assert ssl.HAS_TLSv1_3
    done = subprocess.run([sys.executable, "-c", SERVE], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == ["TLSv1_2 refused", "TLSv1_3 TLSv1.3"]
