"""Who is in the federation, as operators see and change it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.duration_pb2 import Duration
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, select

from aggregator.dashboard.access import open_tokens
from aggregator.database import reading, writing
from aggregator.members.sites_service import CONNECTED_WITHIN, connected_sites, list_sites, received_bytes
from aggregator.members.tokens import Attempts, new_dashboard_token, new_token, token_hash
from aggregator.tables import Audit, Member, Plan, Progress, Study, Upload
from cairn import enrolment
from cairn.errors import BadToken, StudyError
from cairn.invitation import parse
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire
from cairn.v1 import operations_pb2, operations_pb2_grpc

NOW = datetime(2026, 5, 1, 8, 0, tzinfo=UTC)


def invite(running, name: str, role: str = "site", valid_for: Duration | None = None) -> str:
    with operator_channel(running.profile) as channel, errors_from_wire():
        request = operations_pb2.InviteSiteRequest(name=name, role=role, valid_for=valid_for)
        return operations_pb2_grpc.SitesStub(channel).InviteSite(request, timeout=10).invitation


def test_an_invitation_has_all_that_a_newcomer_needs(running) -> None:
    invited = parse(invite(running, "north"))
    addresses = running.aggregator.addresses
    assert (invited.federation, invited.name, invited.role) == ("tissue", "north", "site")
    assert (invited.address, invited.enrolment_address) == (addresses.address, addresses.enrolment)
    assert invited.ca_pem == (running.profile / "ca.pem").read_text()
    assert len(invited.token) >= 43  # 256 bits


def test_only_the_hash_of_a_token_is_kept(running) -> None:
    token = parse(invite(running, "north")).token
    with reading(running.aggregator.engine) as session:
        assert session.get_one(Member, "north").token_hash == token_hash(token)
    running.aggregator.stop()
    assert all(token.encode() not in path.read_bytes() for path in running.folder.rglob("*") if path.is_file())
    assert token not in running.log.getvalue()


@pytest.mark.parametrize("name", ["", "North", "a/b", "../pki", "a" * 64, "-a", "a\n", "naïve", "a'; DROP"])
def test_a_name_that_is_none_is_refused_with_one_sentence(running, name: str) -> None:
    with pytest.raises(StudyError, match="is not a name"):
        invite(running, name)


def test_a_role_that_is_none_is_refused(running) -> None:
    with pytest.raises(StudyError, match="'aggregator' is not a role"):
        invite(running, "north", "aggregator")


@pytest.mark.parametrize("seconds", [-1, 0, 90 * 86400 + 1, 2**62])
def test_an_invitation_holds_for_no_time_that_makes_no_sense(running, seconds: int) -> None:
    with pytest.raises(StudyError, match="holds for 1 s to 90 days"):
        invite(running, "north", valid_for=Duration(seconds=seconds))


def test_revoking_a_stranger_or_oneself_is_refused(running) -> None:
    with pytest.raises(StudyError, match="there is no site or operator south"):
        running.revoke("south")
    with pytest.raises(StudyError, match="you cannot revoke yourself"):
        running.revoke("operator")


def test_revoking_twice_changes_nothing(running, clock) -> None:
    running.join("north")
    running.revoke("north", "first")
    clock.advance(timedelta(hours=1))
    running.revoke("north", "second")
    with reading(running.aggregator.engine) as session:
        member = session.get_one(Member, "north")
        assert (member.revoke_reason, member.revoked_at) == ("first", clock() - timedelta(hours=1))
        assert len(session.scalars(select(Audit).where(Audit.action == "revoke")).all()) == 1


def test_a_revoked_operator_loses_the_dashboard_for_good(running, tmp_path: Path) -> None:
    engine = running.aggregator.engine
    running.join("ada", "operator")
    token = new_dashboard_token(engine, "ada", NOW)
    assert open_tokens(engine, "")().get(token_hash(token)) == "ada"
    running.revoke("ada")
    assert open_tokens(engine, "")().get(token_hash(token)) is None
    enrolment.enrol(running.invite("ada", "operator"), tmp_path / "ada")
    assert open_tokens(engine, "")().get(token_hash(token)) is None  # not even when invited again
    assert open_tokens(engine, "")().get(token_hash(new_token())) is None


def test_the_first_operators_dashboard_token_opens_the_dashboard(running) -> None:
    token = (running.profile / "dashboard-token").read_text().strip()
    assert open_tokens(running.aggregator.engine, "")().get(token_hash(token)) == "operator"


def test_a_dashboard_token_is_only_for_enrolled_operators(running) -> None:
    running.join("north")
    for name in ("north", "nobody"):
        with pytest.raises(StudyError, match=f"there is no enrolled operator {name}"):
            new_dashboard_token(running.aggregator.engine, name, NOW)


def filled(engine: Engine) -> None:
    """Enter two sites, one of which works on a plan and has uploaded to it."""
    with writing(engine) as session:
        for name, seen in (("north", NOW - timedelta(seconds=3)), ("south", NOW - CONNECTED_WITHIN)):
            session.add(
                Member(
                    name=name,
                    role="site",
                    state="enrolled",
                    invited_at=NOW,
                    last_seen=seen,
                    version="0.1.0",
                    problems=["1 file could not be read"] if name == "north" else [],
                )
            )
        session.add(Member(name="east", role="site", state="invited", invited_at=NOW))
        session.add(Member(name="ada", role="operator", state="enrolled", invited_at=NOW, last_seen=NOW))
        session.add(Study(name="map", spec={}, state="counts", window=0, created_at=NOW))
        session.flush()
        for stage in ("moments", "counts"):
            session.add(
                Plan(
                    fingerprint=stage[0] * 64,
                    study="map",
                    stage=stage,
                    window=0,
                    published=b"",
                    deadline=NOW,
                    opened_at=NOW,
                    state="open",
                )
            )
        session.flush()
        session.get_one(Member, "north").working_fingerprint = "c" * 64
        session.add(Progress(plan="c" * 64, site="north", pixels_done=2**40, pixels_total=2**41, at=NOW))
        session.add(Progress(plan="m" * 64, site="north", pixels_done=7, pixels_total=7, at=NOW))
        session.add(Progress(plan="c" * 64, site="south", pixels_done=1, pixels_total=9, at=NOW))
        for plan, size in (("c", 2**33), ("m", 5)):
            session.add(Upload(plan=plan * 64, site="north", digest=plan * 64, size=size, committed_at=NOW))


def test_the_list_says_of_each_member_what_it_does_and_how_it_is(engine: Engine) -> None:
    filled(engine)
    with reading(engine) as session:
        found = {site.name: site for site in list_sites(session, NOW)}
        assert connected_sites(session, NOW) == 1
        assert received_bytes(session) == 2**33 + 5
    assert list(found) == ["ada", "east", "north", "south"]
    north = found["north"]
    assert (north.connected, north.working_on, north.bytes_received) == (True, "map/counts", 2**33 + 5)
    assert (north.pixels_done, north.pixels_total) == (2**40, 2**41)
    assert north.problems == ["1 file could not be read"]
    assert north.last_seen.ToDatetime(UTC) == NOW - timedelta(seconds=3)
    south = found["south"]
    assert (south.connected, south.working_on, south.pixels_done, south.bytes_received) == (False, "", 0, 0)
    assert (found["east"].state, found["east"].HasField("last_seen")) == ("invited", False)
    assert found["ada"].role == "operator"


def test_a_revoked_site_is_not_connected_however_lately_it_was_seen(engine: Engine) -> None:
    filled(engine)
    with writing(engine) as session:
        session.get_one(Member, "north").state = "revoked"
    with reading(engine) as session:
        assert connected_sites(session, NOW) == 0
        assert not {site.name: site for site in list_sites(session, NOW)}["north"].connected


@given(st.lists(st.integers(0, 30), max_size=40))
def test_who_fails_too_often_waits_until_the_oldest_failure_is_long_ago(gaps: list[int]) -> None:
    time = [NOW]
    attempts = Attempts(3, timedelta(seconds=60), lambda: time[0])
    failures: list[datetime] = []
    for gap in gaps:
        time[0] += timedelta(seconds=gap)
        lately = [at for at in failures if time[0] - at < timedelta(seconds=60)]
        try:
            attempts.check("here")
            refused = False
        except BadToken:
            refused = True
        assert refused == (len(lately) >= 3)
        if not refused:
            attempts.failed("here")
            failures.append(time[0])
    attempts.check("elsewhere")
