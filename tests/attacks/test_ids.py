"""Names as an attacker writes them, in every field of every call: no path is left, no statement runs, nothing fails."""

import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message_factory import GetMessageClass

from aggregator.server import OPEN, ROLES
from aggregator.tables import Member
from cairn import v1
from cairn.rpc import mtls_channel, tls_channel
from tests.aggregator.conftest import Running, clock, running, start_aggregator

__all__ = ["clock", "running", "start_aggregator"]
HOSTILE = (
    "../../../../escaped",
    "/tmp/cairn-escaped",
    "..",
    "x'; DROP TABLE upload; --",
    '") OR 1=1 --',
    "name\x00.tif",
    "a\nb\r\nset-cookie: c",
    "%2e%2e%2fescaped",
    "{{7*7}}${7*7}",
    "\u202e\U0001f642" + "z" * 5000,
)


def methods() -> list[MethodDescriptor]:
    """List every call of every service that Cairn offers."""
    found = []
    for module in pkgutil.iter_modules(v1.__path__):
        if module.name.endswith("_pb2"):
            file = importlib.import_module(f"cairn.v1.{module.name}").DESCRIPTOR
            found += [method for service in file.services_by_name.values() for method in service.methods]
    return [method for method in found if method.containing_service.full_name in {*ROLES, *OPEN}]


def filled(method: MethodDescriptor, text: str) -> Any:
    """Make a request with the text in every field that takes one."""
    message = GetMessageClass(method.input_type)()
    for field in method.input_type.fields:
        value: Any = text if field.type == FieldDescriptor.TYPE_STRING else text.encode()
        if field.type not in {FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES}:
            continue
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message


def call(channel: grpc.Channel, method: MethodDescriptor, request: Any) -> grpc.StatusCode:
    """Call a method of any shape, take one answer, and tell its status."""
    name = f"/{method.containing_service.full_name}/{method.name}"
    shape = f"{'stream' if method.client_streaming else 'unary'}_{'stream' if method.server_streaming else 'unary'}"
    stub = getattr(channel, shape)(
        name,
        request_serializer=lambda one: one.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    try:
        answer = stub(iter([request]) if method.client_streaming else request, timeout=3)
        if method.server_streaming:
            next(answer, None)
            answer.cancel()
    except grpc.RpcError as error:
        return error.code()  # type: ignore[attr-defined,no-any-return]
    return grpc.StatusCode.OK


def tree(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.fixture
def channels(running: Running) -> Iterator[dict[str, grpc.Channel]]:
    address = running.aggregator.addresses.address
    with (
        mtls_channel(address, running.join("north")) as site,
        mtls_channel(address, running.join("ada", "operator")) as operator,
        tls_channel(running.aggregator.addresses.enrolment, running.invite("south").ca_pem.encode()) as anybody,
    ):
        yield {"site": site, "operator": operator, "anybody": anybody}


def test_hostile_names_in_every_call_leave_no_file_run_no_statement_and_are_no_failure(
    running: Running, channels: dict[str, grpc.Channel], tmp_path: Path
) -> None:
    outside = {path for path in tree(tmp_path) if not path.startswith("aggregator0")}
    before = tree(tmp_path)
    tried = 0
    for method in methods():
        roles = ROLES.get(method.containing_service.full_name, frozenset({"anybody"}))
        for role in roles & channels.keys():
            for text in HOSTILE:
                status = call(channels[role], method, filled(method, text))
                assert status is not grpc.StatusCode.INTERNAL, f"{method.full_name} failed on {text[:30]!r}"
                tried += 1
    assert tried > 20 * len(HOSTILE)
    assert '"unexpected"' not in running.log.getvalue()
    assert "failed" not in {line.split('"event": "')[-1].split('"')[0] for line in running.log.getvalue().splitlines()}
    assert {path for path in tree(tmp_path) if not path.startswith("aggregator0")} == outside
    assert not [path for path in tree(tmp_path) - before if "escaped" in path]
    assert not Path("/tmp/cairn-escaped").exists()
    names = sqlalchemy.inspect(running.aggregator.engine).get_table_names()
    assert "upload" in names
    with running.aggregator.engine.connect() as connection:
        members = set(connection.scalars(sqlalchemy.select(Member.name)))
    assert {"north", "ada", "south"} <= members
    assert all(name.isascii() and "/" not in name and "'" not in name for name in members)
