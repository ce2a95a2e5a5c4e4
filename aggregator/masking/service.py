"""The service of secure aggregation: frames messages; `Arrivals` decides."""

import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from typing import Final

import grpc
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session as Database

from aggregator import database, tables
from aggregator.masking import late, ledger
from aggregator.masking.arrivals import Arrivals
from aggregator.masking.ledger import OWN, Held
from aggregator.runs.bell import Bell
from cairn.errors import RosterChanged
from cairn.masking import server
from cairn.masking.canonical import encode
from cairn.rpc import caller
from cairn.v1 import masking_pb2, masking_pb2_grpc

Stamp = tuple[str, datetime]
LOOK_S: Final = 60.0  # at the longest between two looks of a caller that waits
STALE_S: Final = 0.5  # how old may be what one caller read and another is told, if nobody rang since


class MaskingService(masking_pb2_grpc.MaskingServicer):
    """cairn.v1.Masking; who calls is in the caller's certificate and nowhere else.

    bell  is rung when a session has come further
    """

    def __init__(self, engine: Engine, arrivals: Arrivals, bell: Bell) -> None:
        self._engine, self._arrivals, self._bell = engine, arrivals, bell
        self._reading = threading.Lock()
        self._read: tuple[int, float, list[Stamp]] = (-1, 0.0, [])  # at how many rings, when, and what

    def Follow(  # noqa: N802 - the name in the proto
        self,
        request: masking_pb2.FollowRequest,  # noqa: ARG002 - gRPC's signature
        context: grpc.ServicerContext,
    ) -> Iterator[masking_pb2.FollowResponse]:
        """Send the caller's sessions now and whenever they have come further."""
        site = caller(context).identity.name
        context.add_callback(self._bell.ring)
        stamp: list[Stamp] | None = None
        while context.is_active() and not self._bell.stopped:
            if (now := self._stamp()) != stamp:
                stamp = now
                yield view(self._engine, site)
            self._bell.wait_until(partial(self._moved_from, stamp), LOOK_S, context.is_active)

    def Advertise(  # noqa: N802
        self, request: masking_pb2.AdvertiseRequest, context: grpc.ServicerContext
    ) -> masking_pb2.AdvertiseResponse:
        """Take message 1."""
        self._take(self._arrivals.advertise, request, context)
        return masking_pb2.AdvertiseResponse()

    def Deal(  # noqa: N802
        self, request: masking_pb2.DealRequest, context: grpc.ServicerContext
    ) -> masking_pb2.DealResponse:
        """Take message 3."""
        self._take(self._arrivals.deal, request, context)
        return masking_pb2.DealResponse()

    def Vote(  # noqa: N802
        self, request: masking_pb2.VoteRequest, context: grpc.ServicerContext
    ) -> masking_pb2.VoteResponse:
        """Take message 7."""
        self._take(self._arrivals.vote, request, context)
        return masking_pb2.VoteResponse()

    def Reveal(  # noqa: N802
        self, request: masking_pb2.RevealRequest, context: grpc.ServicerContext
    ) -> masking_pb2.RevealResponse:
        """Take message 9."""
        self._take(self._arrivals.reveal, request, context)
        return masking_pb2.RevealResponse()

    @staticmethod
    def _take(
        arrived: Callable[[str, bytes, bytes], None],
        request: masking_pb2.AdvertiseRequest
        | masking_pb2.DealRequest
        | masking_pb2.VoteRequest
        | masking_pb2.RevealRequest,
        context: grpc.ServicerContext,
    ) -> None:
        arrived(caller(context).identity.name, request.session, request.body)

    def _moved_from(self, stamp: list[Stamp]) -> bool:
        return self._stamp() != stamp

    def _stamp(self) -> list[Stamp]:
        """Tell how far all sessions are: what a site may see of them changes with this alone.

        Read once for all callers that wait: a thousand would ask the database a thousand times a second.
        """
        with self._reading:
            times, at, found = self._read
            if times != self._bell.times or time.monotonic() - at > STALE_S:
                times, at = self._bell.times, time.monotonic()  # before it is read: who rings meanwhile is heard
                found = self._stamps()
                self._read = times, at, found
            return found

    def _stamps(self) -> list[Stamp]:
        query = select(tables.MaskingSession.digest, tables.MaskingSession.step_since)
        with database.reading(self._engine) as rows:
            found = rows.execute(query.join(tables.Plan).where(tables.Plan.state == "open")).all()
        return sorted((digest, since) for digest, since in found)


def view(engine: Engine, site: str) -> masking_pb2.FollowResponse:
    """Say what all open sessions have come to, and those that went without the site, as it may see it."""
    with database.reading(engine) as rows:
        held = _open(rows)
        ended = [earlier for one in held if one.session.late for earlier in late.ended_without(rows, one, site)]
        return masking_pb2.FollowResponse(sessions=[_seen(one, site) for one in (*ended, *held)])


def _open(rows: Database) -> list[Held]:
    """Read all sessions of plans that are open."""
    plans = rows.scalars(select(tables.Plan.fingerprint).filter_by(state="open").order_by(tables.Plan.opened_at)).all()
    return [held for plan in plans for held in ledger.of_plan(rows, plan)]


def _seen(held: Held, site: str) -> masking_pb2.MaskingSession:
    """Say what a session has come to, as one site may see it."""
    found = masking_pb2.MaskingSession(session=encode(held.session))
    if "roster" not in held.made:
        return found
    found.roster = held.messages["roster", OWN]
    for name in (signed.body.site for signed in held.on.roster.members):
        found.peers.add(site=name, chain_pem=held.chains[name])
    try:
        member = held.place(site)
    except RosterChanged:
        return found
    if "circle" in held.made and member in held.within.dealers:
        found.delivery = encode(server.make_delivery(held.within, held.circle_dealings, member))
    if held.survivors is not None:
        found.survivors, found.voting = held.messages["survivors", OWN], True
    if held.votes is not None:
        found.votes = held.messages["votes", OWN]
    return found
