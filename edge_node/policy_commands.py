"""`cairn edge approve | refuse | forget`, `… policy …`, `… audit …`: people's word, and what is recorded of it."""

import json
import os
import pwd
import shutil
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cairn.errors import CairnError, ConfigError, PlanError, PolicyError
from edge_node.settings import SiteSettings, load_settings

if TYPE_CHECKING:
    from cairn.plan import Plan
    from edge_node.decisions import Verdict

policy_app = typer.Typer(no_args_is_help=True, help="What this site's policy says of a plan, and what is installed.")
audit_app = typer.Typer(no_args_is_help=True, help="The log of all that left this site and of what people decided.")

Config = Annotated[Path, typer.Option("--config", help="The site's settings, site.toml.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
PlanName = Annotated[
    str,
    typer.Argument(
        metavar="PLAN",
        help="A plan's fingerprint, its first 8 or more digits, or a file of the plan.",
        show_default=False,
    ),
]
By = Annotated[str | None, typer.Option("--by", help="Who decides; your login name if not given.", show_default=False)]
Why = Annotated[str, typer.Option("--reason", help="One sentence; of a refusal the aggregator is told it too.")]
FULL, SHORTEST = 64, 8  # digits of a fingerprint


def approve(plan: PlanName, config: Config, by: By = None, reason: Why = "", as_json: AsJson = False) -> None:  # noqa: FBT002
    """Let this site take part in one plan, whatever its study's name. The running service follows within a second.

    Example: `cairn edge approve 3f9ac2d1 --by ada --reason "agreed on 3 March" --config site.toml`
    """
    _decide(plan, config, "approve", by, reason, as_json=as_json)


def refuse(plan: PlanName, config: Config, by: By = None, reason: Why = "", as_json: AsJson = False) -> None:  # noqa: FBT002
    """Keep this site out of one plan; what was counted for it stays here. The running service follows within a second.

    Example: `cairn edge refuse 3f9ac2d1 --by ada --reason "no consent for this use" --config site.toml`
    """
    _decide(plan, config, "refuse", by, reason, as_json=as_json)


def forget(plan: PlanName, config: Config, by: By = None, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Take back what was decided about a plan; the settings decide again.

    Example: `cairn edge forget 3f9ac2d1 --config site.toml`
    """
    _decide(plan, config, None, by, "", as_json=as_json)


@policy_app.command("check")
def check_policy(plan: PlanName, config: Config, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Hold a plan against every rule of this site and say which are against it; nothing is sent or changed.

    Ends with exit code 1 when the site would not take part.
    Example: `cairn edge policy check counts.plan --config site.toml`
    """
    from cairn.plan import RunStage  # noqa: PLC0415 - each command loads what it needs
    from edge_node import fitness  # noqa: PLC0415
    from edge_node.decisions import read_decisions  # noqa: PLC0415
    from edge_node.policy import Rule, rules  # noqa: PLC0415

    settings = load_settings(config)
    of, found = _plan_of(plan, settings)
    if found is None:
        raise PlanError(f"the plan {of[:12]}… is not open at the aggregator; name a file of it")
    verdicts = list(rules(found, bytes.fromhex(of), settings, read_decisions(settings.state_dir)))
    if not isinstance(found.stage, RunStage):  # runs bring their own images
        verdicts.append(Rule("images", fitness.lacking(found, settings.images)))
    against = [rule for rule in verdicts if rule.against]
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "plan": of,
                    "study": found.study,
                    "stage": found.stage.stage,
                    "takes_part": not against,
                    "rules": {rule.name: rule.against or "" for rule in verdicts},
                }
            )
        )
    else:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        for rule in verdicts:
            table.add_row("[red]no[/]" if rule.against else "[green]yes[/]", rule.name, escape(rule.against or ""))
        console = Console()
        console.print(f"{found.study}, {found.stage.stage}, window {found.window} (plan {of})", highlight=False)
        console.print(table)
        console.print(f"This site {'does not take' if against else 'takes'} part.")
    if against:
        raise typer.Exit(1)


@policy_app.command("show")
def show_policy(config: Config, as_json: AsJson = False) -> None:  # noqa: FBT002
    """Print the policy as understood, and all decisions of people that hold.

    Example: `cairn edge policy show --config site.toml --json`
    """
    from edge_node.decisions import read_decisions  # noqa: PLC0415

    settings = load_settings(config)
    masked = {"masked": list(settings.masking.required) or None, "noise": settings.privacy.required or None}
    said = settings.policy.said() | masked
    decisions = read_decisions(settings.state_dir)
    if as_json:
        typer.echo(json.dumps({"policy": said, "decisions": {of: vars(one) for of, one in decisions.items()}}))
        return
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for key, value in said.items():
        table.add_row(
            key, ", ".join(map(str, value)) if isinstance(value, list) else "no rule" if value is None else f"{value}"
        )
    for of, one in decisions.items():
        verb = "approved" if one.verdict == "approve" else "refused"
        table.add_row(f"{of[:12]}…", f"{one.study} {one.stage} {verb} by {one.words}, {one.at}".strip())
    Console().print(table, markup=False)


@policy_app.command("app")
def show_app(as_json: AsJson = False) -> None:  # noqa: FBT002
    """Print the digest of the trainer's program that is installed here, for `policy.apps`.

    Example: `cairn edge policy app`
    """
    from edge_node.training.surroundings import app_digest  # noqa: PLC0415

    found = app_digest()
    typer.echo(json.dumps({"app": found}) if as_json else found)


Known = Annotated[str, typer.Option(help="A line's digest that you noted earlier; it must still be there.")]


@audit_app.command("verify")
def verify_audit(
    config: Config,
    known: Known = "",
    file: Annotated[Path | None, typer.Option(help="An exported log, instead of the site's own.")] = None,
    as_json: AsJson = False,  # noqa: FBT002
) -> None:
    """Check the chain of the audit log, and print the last line's digest: note it elsewhere.

    Ends with exit code 1 when a line was changed, removed or slipped in.
    Example: `cairn edge audit verify --config site.toml --known 5c0e…`
    """
    from cairn.chain import show  # noqa: PLC0415
    from edge_node.audit import verify  # noqa: PLC0415

    path = file or load_settings(config).state_dir / "audit.jsonl"
    if not path.exists():
        raise ConfigError(f"there is no audit log {path}; the service makes it at its first start")
    found = verify(path, known)
    typer.echo(show(found, as_json=as_json))
    if not found.whole:
        raise typer.Exit(1)


@audit_app.command("export")
def export_audit(
    config: Config,
    out: Annotated[Path | None, typer.Option(help="File to write; standard output if not given.")] = None,
) -> None:
    """Write the audit log as JSON lines, one departure or decision a line, with the chain.

    Example: `cairn edge audit export --config site.toml --out audit-2026.jsonl`
    """
    from edge_node.audit import lines  # noqa: PLC0415

    content = b"".join(line + b"\n" for line in lines(load_settings(config).state_dir / "audit.jsonl"))
    if out is None:
        sys.stdout.buffer.write(content)
        return
    try:
        out.write_bytes(content)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error.strerror}") from error
    typer.echo(f"{out} written, {len(content):,} bytes")


def _decide(plan: str, config: Path, verdict: "Verdict | None", by: str | None, reason: str, *, as_json: bool) -> None:
    from edge_node.audit import AuditLog  # noqa: PLC0415 - each command loads what it needs
    from edge_node.decisions import REASON, Decision, decide, moment  # noqa: PLC0415

    settings = load_settings(config)
    if not settings.state_dir.is_dir():
        raise ConfigError(f"there is no state folder {settings.state_dir}; enrol the site first")
    of, found = _plan_of(plan, settings)
    login = os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    who, approvers = by or login, settings.policy.approvers
    if approvers and who not in approvers:
        names = " or ".join(approvers)
        raise PolicyError(f"{who} does not decide here, {names} may (policy.approvers); say who with --by")
    now = datetime.now(UTC)
    decision = None
    if verdict is not None:
        about = (found.study, found.stage.stage, found.window) if found else ("", "", 0)
        decision = Decision(verdict, who, moment(now), " ".join(reason.split())[:REASON], *about)
    log = AuditLog(settings.state_dir / "audit.jsonl", lambda: now)
    _leave_to_owner(settings.state_dir, "audit.jsonl")
    try:
        decide(settings.state_dir, of, decision, log, by=who, login=login)
    finally:
        log.close()
    for name in ("decisions.json", "decisions.lock"):
        _leave_to_owner(settings.state_dir, name)
    what = {"approve": "approved", "refuse": "refused", None: "left to the settings"}[verdict]
    if as_json:
        study = found.study if found else ""
        typer.echo(json.dumps({"plan": of, "decision": verdict or "none", "by": who, "study": study}))
    else:
        typer.echo(f"{f'{found.study}, {found.stage.stage}, ' if found else ''}plan {of[:12]}… is {what} by {who}.")


def _leave_to_owner(folder: Path, name: str) -> None:
    """Give a file that root has made to the service's user, who owns the folder."""
    if os.geteuid() == 0 and (folder / name).exists():
        owner = folder.stat()
        shutil.chown(folder / name, owner.st_uid, owner.st_gid)


def _plan_of(said: str, settings: SiteSettings) -> "tuple[str, Plan | None]":
    """Find the plan that a person means: its fingerprint in hex, and itself where it is at hand."""
    from cairn import codec  # noqa: PLC0415 - each command loads what it needs
    from cairn.plan import fingerprint  # noqa: PLC0415
    from edge_node.checking import first_answer  # noqa: PLC0415
    from edge_node.connection import read_enrolled  # noqa: PLC0415

    path = Path(said)
    if path.is_file():
        published = path.read_bytes()
        return fingerprint(published).hex(), codec.decode_plan(published)
    digits = said.lower().rstrip("…")
    if not (SHORTEST <= len(digits) <= FULL and set(digits) <= set("0123456789abcdef")):
        raise ConfigError(
            f"{said[:80]!r} is neither a file nor a plan's fingerprint of {FULL} hexadecimal digits, or its first "
            f"{SHORTEST} or more"
        )
    try:
        answer = first_answer(settings, read_enrolled(settings.identity_folder).address)
    except CairnError:
        if len(digits) == FULL:
            return digits, None
        raise
    found = [offer.plan for offer in answer.offers if fingerprint(offer.plan).hex().startswith(digits)]
    if len(found) == 1:
        return fingerprint(found[0]).hex(), codec.decode_plan(found[0])
    if len(digits) == FULL:
        return digits, None
    raise ConfigError(f"{len(found)} open plans begin with {digits}; give all {FULL} digits, or a file of the plan")
