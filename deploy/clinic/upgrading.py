"""Change a deployment's image: a trial on a copy of the state, then in earnest, and back when anything fails."""

from dataclasses import replace
from typing import Any

from docker.types import Mount
from rich.progress import Progress

from cairn.errors import CairnError, ConfigError
from deploy.clinic.checks import STATE
from deploy.clinic.containers import (
    Say,
    bare,
    drop_volume,
    edge_status,
    find,
    make_volume,
    run_once,
    start,
    wait_until_well,
)
from deploy.clinic.engine import Engine, spoken
from deploy.clinic.looking import Seen, look_with_image
from deploy.clinic.planning import DRAIN_S, SPEC, Planned, spec
from deploy.clinic.running import bring_image, connected, files_of, refuse_faults
from deploy.clinic.settings import Deployment

# What a trial does without: it is large, and no part of whether a new version can read the rest.
LEFT_BEHIND = ("labels", "blobs", "runs", "spool")
TRIAL_S = 600.0


def settle(engine: Engine, seen: Seen, say: Say) -> None:
    """Undo an upgrade that was cut off: what ran before it comes back, and its trial goes."""
    planned = seen.planned
    end_trial(engine, planned)
    old = find(engine, planned.before)
    if old is None:
        return
    say("an upgrade was cut off; what ran before it comes back")
    roll_back(engine, planned, old)
    seen.container = find(engine, planned.container)


def roll_back(engine: Engine, planned: Planned, old: Any) -> None:
    """Put the container from before back in its place."""
    with spoken("rolling back"):
        if new := find(engine, planned.container):
            new.remove(force=True)
        old.rename(planned.container)
        old.reload()
        old.start()


def upgrade(engine: Engine, wanted: Deployment, seen: Seen, progress: Progress, say: Say) -> Any:
    """Change the image. The new version first proves itself on a copy of the state, without a network.

    What ran before is only stopped, and comes back when anything fails. Raises CairnError with why.
    """
    settle(engine, seen, say)
    refuse_faults(seen)
    planned, old = seen.planned, seen.container
    if old is None:
        raise ConfigError(f"{planned.container} does not run; `cairn deploy up` starts it")
    wish = spec(replace(planned, image=""), files_of(wanted))
    if old.labels.get(SPEC) != wish:
        raise ConfigError(
            "deployment.toml or site.toml has changed in more than the image; an upgrade changes the image alone, so "
            "`cairn deploy up` with the old image first, or afterwards"
        )
    if seen.image is None:
        bring_image(engine, wanted, seen, progress)
        say(f"the image {wanted.image} is on the engine")
        look_with_image(engine, wanted, seen)
        refuse_faults(seen, "the image was brought to the engine, nothing else was changed")
    elif old.attrs["Image"] == seen.image["Id"]:
        say(f"{planned.container} is of {wanted.image} already; nothing was changed")
        return old
    was_connected = bool(seen.site) and old.status == "running" and bool(edge_status(old).get("connected"))
    with spoken(f"stopping {planned.container}"):
        old.stop(timeout=DRAIN_S)
    try:
        with spoken("upgrading"):
            old.rename(planned.before)  # by this name it is found again, whatever ends this program
        new = _replace(engine, wanted, seen, old.labels[SPEC], was_connected=was_connected, say=say)
    except BaseException as error:  # Ctrl-C too
        before, began = old.attrs["Config"]["Image"], False
        old.reload()
        if old.name == planned.before:
            began = find(engine, planned.container) is not None  # on the state itself
            roll_back(engine, planned, old)
        else:
            with spoken("rolling back"):
                old.start()
        if not isinstance(error, CairnError):
            raise
        try:
            wait_until_well(engine, old, wanted.ready_seconds)
        except CairnError as again:
            raise CairnError(f"{error}; {before} does not run on what it left ({again}); restore the backup") from error
        state = "with what the new version wrote into its state" if began else "with its state as it was"
        raise CairnError(f"{error}; {before} runs again, {state}") from error
    with spoken("removing what ran before"):
        old.remove(v=True)
    return new


def _replace(engine: Engine, wanted: Deployment, seen: Seen, wish: str, *, was_connected: bool, say: Say) -> Any:
    """Try the new image on a copy, then start it in the place of the stopped old one. Raises CairnError."""
    planned = seen.planned
    if "database-url" in wanted.secrets:
        say("the database is not in the volume: no trial on a copy")
    else:
        _trial(engine, planned, wanted, seen)
        say("the new version has proved itself on a copy of the state")
    new = start(engine, planned, gpu=seen.gpu, labels={SPEC: wish})
    wait_until_well(engine, new, wanted.ready_seconds)
    if was_connected and not connected(new, seen, say):
        raise CairnError("the new version does not get connected to the aggregator, as the old one was")
    return new


def end_trial(engine: Engine, planned: Planned) -> None:
    """Remove what a trial that was cut off has left."""
    if left := find(engine, f"{planned.container}-trial"):
        with spoken("ending a trial"):
            left.remove(force=True, v=True)
    drop_volume(engine, f"{planned.container}-copy")


def _trial(engine: Engine, planned: Planned, wanted: Deployment, seen: Seen) -> None:
    """Let the new image migrate and serve a copy of the state, where nobody can reach it and it reaches nobody."""
    copy, name = f"{planned.container}-copy", f"{planned.container}-trial"
    make_volume(engine, copy, planned.container)
    try:
        skipped = " ".join(f"--exclude=./{folder}" for folder in LEFT_BEHIND)
        mounts = [
            Mount("/from", planned.state, type="volume", read_only=True),
            Mount(str(STATE), copy, type="volume"),
        ]
        command = f"tar -C /from -cf - {skipped} . | tar -C {STATE} -xf -"
        options = bare(planned.image, mounts) | {"entrypoint": ["sh", "-ec", command], "command": []}
        run_once(engine, "copying the state for a trial", options, TRIAL_S)
        volumes = {copy if volume == planned.state else volume: where for volume, where in planned.volumes.items()}
        trial = replace(planned, container=name, volumes=volumes, ports={}, network="none")
        container = start(
            engine, trial, gpu=seen.gpu, labels={}, network_mode="none", network=None, restart_policy=None
        )
        try:
            wait_until_well(engine, container, wanted.ready_seconds)
        finally:
            with spoken("ending the trial"):
                container.remove(force=True, v=True)
    finally:
        drop_volume(engine, copy)
