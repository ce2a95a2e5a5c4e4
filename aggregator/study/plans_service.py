"""The service by which a site learns what is wanted, answers, and tells how far it is."""

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

import grpc
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.intake.tallies_service import plan_name
from aggregator.study.board import Board
from cairn.errors import NotEnrolled, UnknownPlan
from cairn.rpc import caller
from cairn.v1 import plans_pb2, plans_pb2_grpc

PROBLEMS = 20
SENTENCE = 300  # characters of a reason or a problem
VERSION = 64
COUNT_LIMIT = 2**62


class PlansService(plans_pb2_grpc.PlansServicer):
    """cairn.v1.Plans.

    answered           called after a site answered: a refusal may close a stage
    superlink_address  told to every site that watches; "" when the federation does not train
    """

    def __init__(
        self,
        engine: Engine,
        board: Board,
        now: Callable[[], datetime],
        answered: Callable[[], None],
        superlink_address: str = "",
    ) -> None:
        self._engine = engine
        self._board = board
        self._now = now
        self._answered = answered
        self._superlink_address = superlink_address

    def Watch(  # noqa: N802 - the name in the proto
        self, request: plans_pb2.WatchRequest, context: grpc.ServicerContext
    ) -> Iterator[plans_pb2.WatchResponse]:
        """Send the open plans now and whenever they change."""
        site = caller(context).identity.name
        version, now = plain_text(request.version, VERSION), self._now()

        def note(session: Session) -> None:
            member = _member(session, site)
            member.version, member.last_seen = version, now

        database.together(self._engine, note)
        context.add_callback(self._board.wake)
        for offers in self._board.watch(site, context.is_active):
            response = plans_pb2.WatchResponse(superlink_address=self._superlink_address)
            for offer in offers:
                response.offers.add(plan=offer.plan).deadline.FromDatetime(offer.deadline)
            yield response

    def Answer(  # noqa: N802
        self, request: plans_pb2.AnswerRequest, context: grpc.ServicerContext
    ) -> plans_pb2.AnswerResponse:
        """Note that the site takes part in a plan or does not, and why."""
        site, plan = caller(context).identity.name, plan_name(request.fingerprint)
        reason = plain_text(request.reason, SENTENCE)

        def note(session: Session) -> None:
            _known(session, plan)
            before = session.get(tables.Answer, (plan, site))
            if before is None or (before.accepted, before.reason) != (request.accepted, reason):
                now = self._now()
                session.merge(tables.Answer(plan=plan, site=site, accepted=request.accepted, reason=reason, at=now))
                action = "accept" if request.accepted else "refuse"
                database.audit(session, now, f"site/{site}", action, plan, reason=reason)

        database.together(self._engine, note)
        self._answered()
        return plans_pb2.AnswerResponse()

    def Report(  # noqa: N802
        self, request: plans_pb2.ReportRequest, context: grpc.ServicerContext
    ) -> plans_pb2.ReportResponse:
        """Note how far the site is."""
        site = caller(context).identity.name
        plan = plan_name(request.fingerprint) if request.fingerprint else None
        problems = [text for text in (plain_text(p, SENTENCE) for p in request.problems) if text]
        now = self._now()

        def note(session: Session) -> None:
            member = _member(session, site)
            member.last_seen, member.working_fingerprint = now, plan
            member.problems = problems[-PROBLEMS:]
            if plan is not None:
                _known(session, plan)
                session.merge(
                    tables.Progress(
                        plan=plan,
                        site=site,
                        pixels_done=min(request.pixels_done, COUNT_LIMIT),
                        pixels_total=min(request.pixels_total, COUNT_LIMIT),
                        files_done=request.files_done,
                        files_total=request.files_total,
                        raw_bytes=min(request.raw_bytes, COUNT_LIMIT),
                        at=now,
                    )
                )

        database.together(self._engine, note)
        return plans_pb2.ReportResponse()


def plain_text(text: str, longest: int) -> str:
    """Make text from a site fit to be shown: one line, no control characters, no longer than so many characters."""
    return " ".join(_visible(text[: 4 * longest]).split())[:longest]


def _visible(characters: Iterable[str]) -> str:
    # Other: control, format (such as right-to-left overrides), surrogate, private, unassigned.
    return "".join(" " if unicodedata.category(c).startswith("C") else c for c in characters)


def _member(session: Session, site: str) -> tables.Member:
    member = session.get(tables.Member, site)
    if member is None:
        raise NotEnrolled(f"there is no site {site} in this federation; enrol first")
    return member


def _known(session: Session, plan: str) -> None:
    if session.get(tables.Plan, plan) is None:
        raise UnknownPlan(f"no plan {plan[:12]} was published here; ask for the open plans again")
