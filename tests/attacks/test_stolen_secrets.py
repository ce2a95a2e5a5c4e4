"""Somebody has what was meant for one hospital: its token, or its key."""

from pathlib import Path

import pytest
from sqlalchemy import select

from aggregator import database
from aggregator.tables import Audit
from cairn import enrolment
from cairn.errors import BadToken, Revoked
from cairn.rpc import TlsFiles, errors_from_wire, mtls_channel
from cairn.v1 import plans_pb2, plans_pb2_grpc
from tests.aggregator.conftest import Running, clock, running, start_aggregator

__all__ = ["clock", "running", "start_aggregator"]


def watch(running: Running, files: TlsFiles) -> None:
    with mtls_channel(running.aggregator.addresses.address, files) as channel, errors_from_wire():
        stream = plans_pb2_grpc.PlansStub(channel).Watch(plans_pb2.WatchRequest(version="0.1.0"), timeout=10)
        next(stream)
        stream.cancel()


def test_a_thief_of_a_token_is_noticed_by_the_site_and_shut_out_by_the_operator(
    running: Running, tmp_path: Path
) -> None:
    invited = running.invite("north")
    thief = enrolment.enrol(invited, tmp_path / "thief")
    watch(running, thief)
    with pytest.raises(BadToken, match="was used"):  # so the hospital calls the operator
        enrolment.enrol(invited, tmp_path / "hospital")
    running.revoke("north", "the token was stolen")
    with pytest.raises(Revoked, match="the token was stolen"):
        watch(running, thief)
    hospital = enrolment.enrol(running.invite("north"), tmp_path / "hospital")
    watch(running, hospital)
    with pytest.raises(Revoked):
        watch(running, thief)  # under the same name, but with the old certificate
    with database.reading(running.aggregator.engine) as session:
        actions = list(session.scalars(select(Audit.action).filter_by(subject="north").order_by(Audit.id)))
    assert actions.count("enrol") == 2
    assert "revoke" in actions
