"""Found a federation in an empty folder: CA, settings file, database, and the first operator with all credentials."""

import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import func, select

from aggregator.database import audit, open_database, upgrade, writing
from aggregator.members import pki
from aggregator.members.enrolment_service import certify
from aggregator.members.tokens import new_dashboard_token
from aggregator.settings import FILE, AggregatorSettings, join_address, load_settings, split_address
from aggregator.tables import Member
from cairn.enrolment import tls_files
from cairn.errors import ConfigError
from cairn.files import write_atomically
from cairn.profile import write_profile
from cairn.rpc import NAME

DEFAULT_PORT = 8443
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

TOML = """\
# Settings of the aggregator of the federation "{federation}"; every key is explained in docs/OPERATING.md.
# An environment variable CAIRN_<KEY> goes before the value here. Relative paths start at this file's folder.

# Written into every certificate; a change would shut every member out.
federation = "{federation}"

# Under which names or IP addresses the sites reach this machine, HOST or HOST:PORT. The first is put into invitations.
addresses = [{addresses}]

# Where enrolment is reached, when that is not the first address's host with the port of enrolment_listen.
# enrolment_address = "cairn.example.org:8444"

# Where to listen; port 0 takes any free port, and the same one again after a restart.
listen = "{listen}"                      # sites and operators, mutual TLS
enrolment_listen = "{enrolment_listen}"  # newcomers, TLS
# The pages, metrics and health are plain HTTP: keep them on this machine, or behind a proxy that adds TLS.
dashboard_listen = "{dashboard_listen}"

# Database, uploads and blobs. Back this folder up together with pki_dir.
state_dir = "."
# The CA's private key, ca.key: whoever has it can let anybody in.
pki_dir = "pki"

# SQLite in state_dir when not set. A URL with a password belongs into a file, database_file.
{database}
{database_file}
# Blobs in state_dir/blobs when not set; S3-compatible storage as s3://bucket/prefix.
{blobs}

# Blobs and checkpoints are sealed on the disk with this key: cairn aggregator at-rest key FILE makes one.
[at_rest]
{key_file}

[limits]
# threads = 1024           # calls open at once; every connected site holds one or two
# failed_enrolments = 10   # from one address within a minute

# With this section the sites can train together: a Flower SuperLink runs beside the aggregator, on a port of its own
# that the sites must reach. Needs cairn-federation[train].
{training}
{superlink_listen}
# superlink_address = "cairn.example.org:8446"   # when that is not the first address's host with this port
"""


def initialise(
    folder: Path,
    federation: str,
    addresses: Sequence[str],
    now: datetime,
    *,
    operator: str = "operator",
    listen: str | None = None,
    enrolment_listen: str | None = None,
    dashboard_listen: str | None = None,
    database: str | None = None,
    database_file: Path | None = None,
    blobs: str | None = None,
    at_rest_key: Path | None = None,
    training: bool = False,
) -> AggregatorSettings:
    """Make everything that `serve` needs. Raises ConfigError when something is there already; then nothing changes."""
    for name in (FILE, "pki", "operator", "cairn.db"):
        if (folder / name).exists():
            raise ConfigError(f"{folder} holds {name} already; name another folder, nothing here was changed")
    if not NAME.fullmatch(operator):
        raise ConfigError(f"{operator[:80]!r} is not a name of lower-case letters, digits and inner hyphens")
    if not addresses:
        raise ConfigError("name at least one address under which the sites reach the aggregator")
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with ExitStack() as undo:
        for name in (FILE, "cairn.db", "cairn.db-wal", "cairn.db-shm"):
            undo.callback((folder / name).unlink, missing_ok=True)
        for name in ("pki", "operator"):
            (folder / name).mkdir(mode=0o700)
            undo.callback(shutil.rmtree, folder / name)
        with write_atomically(folder / FILE) as file:
            file.write(
                _settings_text(
                    federation,
                    addresses,
                    (listen, enrolment_listen, dashboard_listen),
                    database,
                    blobs,
                    secrets=(database_file, at_rest_key),
                    training=training,
                ).encode()
            )
        settings = load_settings(folder / FILE)
        authority = pki.make_authority(federation, now)
        pki.save_authority(authority, settings.pki_dir)
        _first_operator(settings, authority, operator, folder / "operator", now)
        undo.pop_all()
    return settings


def _first_operator(
    settings: AggregatorSettings, authority: pki.Authority, operator: str, profile: Path, now: datetime
) -> None:
    engine = open_database(settings.database_url)
    try:
        upgrade(engine)
        key = ec.generate_private_key(ec.SECP256R1())
        with writing(engine) as session:
            if session.scalar(select(func.count()).select_from(Member)):
                raise ConfigError("the database already belongs to an aggregator; name an empty one")
            member = Member(name=operator, role="operator", state="enrolled", invited_at=now, enrolled_at=now)
            session.add(member)
            session.flush()
            chain = certify(session, authority, member, key.public_key(), now)
            audit(session, now, "aggregator", "init", operator, federation=settings.federation)
        token = new_dashboard_token(engine, operator, now)
    finally:
        engine.dispose()
    files = tls_files(profile)
    for path, content, mode in (
        (files.ca, authority.certificate_pem, 0o644),
        (files.certificate, chain, 0o644),
        (files.key, pki.private_pem(key), 0o600),
        (profile / "dashboard-token", f"{token}\n".encode(), 0o600),
    ):
        with write_atomically(path, mode) as file:
            file.write(content)
    host, port = split_address(settings.addresses[0])
    port = split_address(settings.listen)[1] if port is None else port
    if port:
        write_profile(profile, address=join_address(host, port))
    else:  # known only once it serves
        write_profile(profile, address=None, addresses_file="../addresses.json")


def _settings_text(
    federation: str,
    addresses: Sequence[str],
    listens: tuple[str | None, str | None, str | None],
    database: str | None,
    blobs: str | None,
    *,
    secrets: tuple[Path | None, Path | None],
    training: bool,
) -> str:
    try:
        host, port = split_address(addresses[0])
    except ValueError as error:
        raise ConfigError(str(error)) from error
    port = DEFAULT_PORT if port is None else port
    if port > 65532:
        raise ConfigError(f"port {port} leaves no room for the three ports after it; name them with --listen …")
    bind = host if host in LOOPBACK else "0.0.0.0"  # noqa: S104 - sites come from outside
    defaults = (
        join_address(bind, port),
        join_address(bind, port and port + 1),
        join_address("127.0.0.1", port and port + 2),
    )
    chosen = [given or default for given, default in zip(listens, defaults, strict=True)]
    database_file, at_rest_key = (str(path) if path else "" for path in secrets)
    for text in (federation, *addresses, *chosen, database or "", blobs or "", database_file, at_rest_key):
        if not text.isprintable() or '"' in text or "\\" in text:
            raise ConfigError(f"{text[:80]!r} cannot be written into {FILE}")
    return TOML.format(
        federation=federation,
        addresses=", ".join(f'"{address}"' for address in addresses),
        listen=chosen[0],
        enrolment_listen=chosen[1],
        dashboard_listen=chosen[2],
        database=f'database = "{database}"' if database else '# database = "postgresql+psycopg://cairn@host/cairn"',
        database_file=_line("database_file", database_file, "/run/secrets/database"),
        key_file=_line("key_file", at_rest_key, "/etc/cairn/at-rest.key"),
        blobs=f'blobs = "{blobs}"' if blobs else '# blobs = "s3://bucket/prefix"',
        training="[training]" if training else "# [training]",
        superlink_listen=f'{"" if training else "# "}superlink_listen = "{join_address(bind, port and port + 3)}"',
    )


def _line(key: str, value: str, example: str) -> str:
    """Write a setting, or an example of it behind a hash."""
    return f'{key} = "{value}"' if value else f'# {key} = "{example}"'
