"""The operator's side of a call: a profile folder says where the aggregator is and who is calling."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import grpc
import typer
from cryptography import x509

from cairn.enrolment import ENDS_SOON, tls_files
from cairn.errors import ConfigError
from cairn.files import write_atomically
from cairn.rpc import mtls_channel

CALL_SECONDS = 30.0

ProfileOption = Annotated[
    Path,
    typer.Option(
        "--profile", envvar="CAIRN_PROFILE", help="Folder of your credentials, DIR/operator after `init --dir DIR`."
    ),
]


def operator_channel(profile: Path) -> grpc.Channel:
    """Open a channel to the aggregator as the operator whose profile this is. Raises ConfigError.

    A profile folder holds ca.pem, certificate.pem, key.pem and profile.json.
    """
    files = tls_files(profile)
    for path in (files.ca, files.certificate, files.key):
        if not path.is_file():
            raise ConfigError(f"the profile {profile} has no {path.name}; enrol, or name another with --profile")
    _warn_of_end(files.certificate)
    return mtls_channel(profile_address(profile), files)


def _warn_of_end(certificate: Path) -> None:
    try:
        ends = x509.load_pem_x509_certificate(certificate.read_bytes()).not_valid_after_utc
    except ValueError as error:
        raise ConfigError(f"{certificate} is no certificate; enrol again, or name another profile") from error
    if (left := ends - datetime.now(UTC)) < ENDS_SOON:
        said = (
            f"your certificate ends on {ends:%Y-%m-%d}"
            if left.days >= 0
            else f"your certificate ended on {ends:%Y-%m-%d}"
        )
        typer.echo(f"cairn: {said}; make a new one with `cairn aggregator renew`", err=True)


def write_profile(profile: Path, *, address: str | None, addresses_file: str | None = None) -> None:
    """Write profile.json: the aggregator's address, or the file where a server with a port of 0 announces it."""
    known: dict[str, Any] = {"address": address, "addresses_file": addresses_file}
    with write_atomically(profile / "profile.json") as file:
        file.write(json.dumps({key: value for key, value in known.items() if value}, indent=2).encode() + b"\n")


def profile_address(profile: Path) -> str:
    """Say where the aggregator of a profile is, host:port. Raises ConfigError."""
    path = profile / "profile.json"
    try:
        known = json.loads(path.read_bytes())
        if "addresses_file" in known:
            path = profile / known["addresses_file"]
            known = json.loads(path.read_bytes())
        return str(known["address"])
    except FileNotFoundError as error:
        raise ConfigError(f"there is no {path}; is the aggregator running, and is {profile} its profile?") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} names no address of an aggregator") from error
