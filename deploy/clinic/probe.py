"""What only a container can see, as the user and on the network that the service will have. Runs by itself.

This file's text is handed to `python3 -c` in a container that ends after it; it needs no file of Cairn's there, so
that it also looks around in older images. One JSON object comes in as the argument, one goes to standard output.
"""

import errno
import json
import os
import shutil
import socket
import ssl
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

LOOKED_AT = 500  # entries of a data folder that are opened; a folder may hold a hundred thousand
CONNECT_S = 8.0
TIME_KEY = "cairn-time"  # what the aggregator answers with: seconds since 1970


def look_at_data(folder: str) -> dict[str, Any]:
    """Count what lies in a folder, and what of it this user cannot read; names stay here."""
    found: dict[str, Any] = {"entries": 0, "unreadable": 0, "error": None}
    waiting = [folder]
    while waiting and found["entries"] < LOOKED_AT:
        here = waiting.pop()
        try:
            entries = list(os.scandir(here))
        except OSError as error:
            if here == folder:
                found["error"] = error.strerror
                return found
            found["unreadable"] += 1
            continue
        for entry in entries[: LOOKED_AT - found["entries"]]:
            found["entries"] += 1
            if entry.is_dir(follow_symlinks=False):
                waiting.append(entry.path)
            elif not os.access(entry.path, os.R_OK):
                found["unreadable"] += 1
    return found


def look_at_state(folder: str) -> dict[str, Any]:
    """Try to write, and say what is free and what is there already."""
    found: dict[str, Any] = {"writable": True, "error": None, "free": 0, "holds": [], "bytes": 0}
    try:
        with tempfile.NamedTemporaryFile(dir=folder) as file:
            file.write(b"x")
            file.flush()
        found["holds"] = sorted(entry.name for entry in os.scandir(folder))
        found["free"] = shutil.disk_usage(folder).free
    except OSError as error:
        found.update(writable=False, error=error.strerror)
    return found


def look_at_identity(folder: str) -> dict[str, Any] | None:
    """Read whose certificate lies in a state folder, until when it holds, and where its aggregator is."""
    identity = Path(folder) / "identity"
    try:
        from cryptography import x509  # noqa: PLC0415 - every image of Cairn has it

        certificate = x509.load_pem_x509_certificate((identity / "certificate.pem").read_bytes())
        address = json.loads((identity / "aggregator.json").read_bytes())["address"]
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        who = str(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
        return {"who": who, "expires": certificate.not_valid_after_utc.timestamp(), "address": address}
    except (OSError, ValueError, KeyError, ImportError):
        return None


def reach(address: str, ca: str | None, cert: str | None = None, key: str | None = None) -> dict[str, Any]:
    """Go to an aggregator step by step, so that what is in the way can be named: name, port, TLS, answer, its time.

    ca         PEM of the federation's CA; None only knocks at the port; cert and key are files, for the port that asks
               for them
    """
    host, _, port = address.rpartition(":")
    found: dict[str, Any] = {"address": address, "step": "name", "error": None, "time": None}
    where: Any
    try:
        where = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0][4]
        found["step"] = "port"
        with socket.create_connection(where[:2], CONNECT_S) as plain:
            if ca is None:
                found["step"] = "done"
                return found
            found["step"] = "tls"
            context = ssl.create_default_context(cadata=ca)
            context.set_alpn_protocols(["h2"])
            if cert and key:
                context.load_cert_chain(cert, key)
            with context.wrap_socket(plain, server_hostname=host.strip("[]")):
                found["step"] = "answer"
        found["time"] = ask_time(address, ca, cert, key)
        found["step"] = "done"
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        found["error"] = getattr(error, "verify_message", None) or getattr(error, "strerror", None) or str(error)
    return found


def ask_time(address: str, ca: str, cert: str | None, key: str | None) -> float | None:
    """Ask the aggregator's gRPC health, and for its time; None from one that does not tell it."""
    import grpc  # noqa: PLC0415 - every image of Cairn has it

    pair = (Path(key).read_bytes(), Path(cert).read_bytes()) if cert and key else (None, None)
    with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca.encode(), *pair)) as channel:
        call: Any = channel.unary_unary("/grpc.health.v1.Health/Check")  # type: ignore[call-arg]  # bytes as they are
        try:
            _, seen = call.with_call(b"", timeout=CONNECT_S)
        except grpc.RpcError as error:
            raise OSError(f"{error.code().name.lower()}: {error.details() or ''}"[:160]) from error
    said = dict(seen.initial_metadata() or ())
    return float(said[TIME_KEY]) if TIME_KEY in said else None


def taken(host: str, port: int) -> bool:
    """Tell whether somebody listens at an address of this machine, or has it."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind((host, port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def available_memory() -> int:
    """Read how many bytes of memory could still be taken."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))


def look(asked: dict[str, Any]) -> dict[str, Any]:
    """Look at all that is asked for: data (name to folder), state, ports; reach with `ca`, knock at ports alone."""
    found: dict[str, Any] = {"time": time.time(), "memory": available_memory()}
    found["data"] = {name: look_at_data(folder) for name, folder in asked.get("data", {}).items()}
    found["ports"] = [[host, port] for host, port in asked.get("ports", []) if taken(host, port)]
    if state := asked.get("state"):
        found["state"] = look_at_state(state)
        found["identity"] = look_at_identity(state)
    identity = found.get("identity")
    reached: list[dict[str, Any]] = []
    if identity is None or identity["expires"] <= found["time"]:  # else the invitation is used up
        reached += [reach(address, asked["ca"]) for address in asked.get("reach", [])]
        reached += [reach(address, None) for address in asked.get("knock", [])]
    if identity and asked.get("enrolled") and (identity["expires"] > found["time"] or not reached):
        files = Path(asked["state"]) / "identity"
        pair = str(files / "certificate.pem"), str(files / "key.pem")
        reached.append(reach(identity["address"], (files / "ca.pem").read_text(encoding="ascii"), *pair))
    found["reached"] = reached
    return found


if __name__ == "__main__":
    print(json.dumps(look(json.loads(sys.argv[1]))))  # noqa: T201 - the answer
