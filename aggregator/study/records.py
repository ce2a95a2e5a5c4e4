"""What the coordinator and the studies' service read and write in the database, each in a session of the caller's."""

from datetime import datetime
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from aggregator import database, tables
from aggregator.intake.store import BlobStore, storage_full
from aggregator.study import studies
from aggregator.study.steps import Outcome
from cairn import codec
from cairn.errors import StudyError
from cairn.files import write_atomically
from cairn.plan import Plan, fingerprint
from cairn.study import StudySpec

MESSAGE = 500


def find_study(session: Session, name: str) -> tables.Study:
    """Read a study. Raises StudyError when there is none of this name."""
    study = session.get(tables.Study, name)
    if study is None:
        raise StudyError(f"there is no study {name[:80]!r}; `cairn study list` shows all")
    return study


def check_name(session: Session, name: str) -> None:
    """Refuse the name of a study or a run that is there already: their names share a namespace. Raises StudyError."""
    for table, what in ((tables.Study, "study"), (tables.Run, "run")):
        if session.get(table, name) is not None:
            raise StudyError(f"there is a {what} {name} already; choose another name")


def find_plan(session: Session, study: str, stage: str, window: int) -> tables.Plan:
    """Read the plan of a stage and window. Raises StudyError when it was not published."""
    plan = session.scalars(select(tables.Plan).filter_by(study=study, stage=stage, window=window)).one_or_none()
    if plan is None:
        raise StudyError(f"{study} has not come to the stage {stage} of window {window}")
    return plan


def current_plan(session: Session, study: tables.Study) -> tables.Plan | None:
    """Read the plan that sites work on, or None when the study's state is not one of theirs."""
    if study.state not in studies.COLLECTING:
        return None
    return find_plan(session, study.name, study.state, study.window)


def publish(session: Session, plan: Plan, deadline: datetime, now: datetime) -> None:
    """Publish a plan; one that was published stays as it is."""
    published = codec.encode_plan(plan)
    name = fingerprint(published).hex()
    if session.get(tables.Plan, name) is None:
        session.add(
            tables.Plan(
                fingerprint=name,
                study=plan.study,
                stage=plan.stage.stage,
                window=plan.window,
                published=published,
                deadline=deadline,
                opened_at=now,
                state="open",
            )
        )


def participants(session: Session, plan: str) -> list[studies.Participant]:
    """List the sites that a stage waits for or has heard from, by name."""
    refused = set(session.scalars(select(tables.Answer.site).filter_by(plan=plan, accepted=False)))
    uploaded = set(session.scalars(select(tables.Upload.site).filter_by(plan=plan)))
    members = select(tables.Member.name, tables.Member.state).filter_by(role="site").order_by(tables.Member.name)
    return [
        studies.Participant(name, enrolled=state == "enrolled", refused=name in refused, uploaded=name in uploaded)
        for name, state in session.execute(members)
    ]


def say(session: Session, study: str, message: str) -> bool:
    """Set the sentence that a study shows to people; tells whether it is another than before."""
    row = find_study(session, study)
    changed = row.message != message[:MESSAGE]
    row.message = message[:MESSAGE]
    return changed


def keep_table(store: BlobStore, folder: Path, outcome: Outcome) -> str | None:
    """Put the heavy hitters' table of an outcome into the store; returns its digest, or None when there is no table.

    folder  for the file until it is in the store
    """
    if outcome.table is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    digest = fingerprint(outcome.table).hex()
    path = folder / f"table-{digest}"
    with storage_full("the aggregator cannot keep the heavy hitters' table"), write_atomically(path) as file:
        file.write(outcome.table)
    store.put(path, digest)
    return digest


def advance(
    session: Session,
    before: tables.Study,
    outcome: Outcome,
    *,
    table: str | None = None,
    message: str = "",
    actor: str,
    now: datetime,
) -> bool:
    """Take a study to its next state, with the next plan; false when it is not any more where `before` says.

    before   the study as it was when the step began
    table    digest of the heavy hitters' table, when the step made one
    Raises StudyError when the event has no place in the state.
    """
    study = find_study(session, before.name)
    if (study.state, study.window) != (before.state, before.window):
        return False
    spec = StudySpec.model_validate(study.spec)
    state = studies.following(studies.as_state(study.state), outcome.event)
    seconds = {**study.results.get("seconds", {}), **outcome.results.get("seconds", {})}
    results = {**study.results, **outcome.results, "seconds": seconds}
    if table is not None:
        results["heavy_hitters_digest"] = table
    if outcome.event == "extended":
        study.window += 1
    if outcome.plan is not None:
        publish(session, studies.as_published(spec, outcome.plan), now + spec.stage_deadline, now)
    study.state, study.results, study.message = state, results, message[:MESSAGE]
    database.audit(session, now, actor, "advance", study.name, event=outcome.event, state=state, window=study.window)
    return True
