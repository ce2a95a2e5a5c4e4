"""`cairn aggregator …` as an operator types it, against a real aggregator."""

import json
import stat
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from aggregator.commands import parse_span
from aggregator.dashboard.access import open_tokens
from aggregator.members.tokens import token_hash
from cairn import enrolment, invitation
from cairn.cli import main
from cairn.errors import ConfigError
from cairn.profile import operator_channel
from tests.aggregator.simulated import wait_until


@dataclass(frozen=True)
class Said:
    """What a command left behind."""

    code: int
    out: str
    err: str


@pytest.fixture
def cairn(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Return a function that runs `cairn aggregator ARGUMENTS…` in this process."""

    def run(*arguments: object) -> Said:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["cairn", "aggregator", *map(str, arguments)])
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


def test_invite_prints_one_line_with_which_a_site_enrols(cairn, running, tmp_path: Path) -> None:
    said = cairn("invite", "north", "--profile", running.profile)
    assert said.code == 0
    assert said.out.count("\n") == 1
    enrolment.enrol(invitation.parse(said.out), tmp_path / "north")


def test_invite_writes_a_file_for_its_owner_only_and_keeps_the_secret_off_the_screen(cairn, running, tmp_path) -> None:
    out = tmp_path / "north.txt"
    said = cairn("invite", "north", "--profile", running.profile, "--out", out, "--json")
    assert json.loads(said.out) == {"name": "north", "role": "site", "out": str(out)}
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert invitation.parse(out.read_text()).name == "north"


def test_the_profile_may_come_from_the_environment(cairn, running, monkeypatch) -> None:
    monkeypatch.setenv("CAIRN_PROFILE", str(running.profile))
    assert cairn("sites").code == 0


def test_sites_lists_members_as_a_table_and_as_json(cairn, running) -> None:
    running.join("north")

    def listed() -> dict[str, Any]:
        sites = json.loads(cairn("sites", "--profile", running.profile, "--json").out)["sites"]
        return {site["name"]: site for site in sites}

    assert {name: site["state"] for name, site in listed().items()} == {"north": "enrolled", "operator": "enrolled"}
    assert listed()["north"]["last_seen"] is None
    wait_until(lambda: listed()["operator"]["connected"], "the operator's own calls to be noted")
    table = cairn("sites", "--profile", running.profile).out
    assert "north" in table
    assert "never" in table


def test_revoke_says_so_and_the_list_shows_it(cairn, running) -> None:
    running.join("north")
    assert cairn("revoke", "north", "--reason", "stolen", "--profile", running.profile).out == "north is revoked.\n"
    listed = json.loads(cairn("sites", "--profile", running.profile, "--json").out)["sites"]
    assert {site["name"]: site["state"] for site in listed}["north"] == "revoked"


def test_revoke_needs_a_reason(cairn, running) -> None:
    said = cairn("revoke", "north", "--profile", running.profile)
    assert said.code == 2
    assert "--reason" in said.err


def test_an_error_of_the_aggregator_is_one_sentence_and_exit_code_1(cairn, running) -> None:
    said = cairn("revoke", "south", "--reason", "x", "--profile", running.profile)
    assert (said.code, said.out) == (1, "")
    assert said.err == "cairn: there is no site or operator south; `cairn aggregator sites` lists them\n"


def test_a_second_operator_takes_up_an_invitation_and_manages_the_federation(cairn, running, tmp_path: Path) -> None:
    line, profile = tmp_path / "ada.txt", tmp_path / "ada"
    cairn("invite", "ada", "--role", "operator", "--profile", running.profile, "--out", line)
    assert cairn("enrol", "--invitation", line, "--profile", profile).code == 0
    assert cairn("invite", "north", "--profile", profile).code == 0
    again = cairn("enrol", "--invitation", line, "--profile", profile)
    assert "holds credentials already" in again.err


def test_an_operator_cannot_take_up_a_sites_invitation(cairn, running, tmp_path: Path) -> None:
    line = tmp_path / "north.txt"
    cairn("invite", "north", "--profile", running.profile, "--out", line)
    said = cairn("enrol", "--invitation", line, "--profile", tmp_path / "x")
    assert "cairn edge enrol" in said.err
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("content", [None, b"", b"not an invitation", b"\xff\xfe", b"cairn-invitation-1.abc"])
def test_an_invitation_that_is_none_is_one_sentence(cairn, tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "line.txt"
    if content is not None:
        path.write_bytes(content)
    said = cairn("enrol", "--invitation", path, "--profile", tmp_path / "x")
    assert said.code == 1
    assert said.err.count("\n") == 1


def test_another_dashboard_token_is_made_on_the_aggregators_machine(cairn, running) -> None:
    token = json.loads(cairn("dashboard-token", "--dir", running.folder, "--json").out)["token"]
    assert open_tokens(running.aggregator.engine, "")().get(token_hash(token)) == "operator"
    said = cairn("dashboard-token", "--dir", running.folder, "--operator", "nobody")
    assert "there is no enrolled operator nobody" in said.err


def test_init_says_what_to_do_next_and_refuses_a_second_time(cairn, tmp_path: Path) -> None:
    arguments = ("init", "--dir", tmp_path / "a", "--federation", "tissue", "--address", "127.0.0.1:0")
    said = cairn(*arguments)
    assert f"cairn aggregator serve --dir {tmp_path / 'a'}" in said.out
    before = {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()}
    again = cairn(*arguments)
    assert (again.code, again.err.count("\n")) == (1, 1)
    assert {path: path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file()} == before


def test_serve_without_init_is_one_sentence(cairn, tmp_path: Path) -> None:
    said = cairn("serve", "--dir", tmp_path)
    assert said.code == 1
    assert "there is no settings file" in said.err


def test_init_in_a_folder_that_cannot_be_made_is_one_sentence(cairn, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said = cairn("init", "--dir", tmp_path / "file" / "a", "--federation", "tissue", "--address", "127.0.0.1")
    assert (said.code, said.err.count("\n")) == (1, 1)


@pytest.mark.parametrize("command", ["init", "serve", "invite", "enrol", "revoke", "sites", "dashboard-token"])
def test_every_command_explains_itself_with_an_example(cairn, command: str) -> None:
    said = cairn(command, "--help")
    assert said.code == 0
    assert f"cairn aggregator {command}" in said.out
    assert "Example" in said.out


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("30s", timedelta(seconds=30)),
        ("90m", timedelta(minutes=90)),
        ("12h", timedelta(hours=12)),
        ("7d", timedelta(days=7)),
        ("2w", timedelta(weeks=2)),
    ],
)
def test_a_span_of_time_is_a_number_and_a_unit(text: str, span: timedelta) -> None:
    assert parse_span(text) == span


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "7 d", "9999999d", "1y"])
def test_what_is_no_span_of_time_is_refused(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="is not a span of time"):
        parse_span(text)


@pytest.mark.parametrize("missing", ["ca.pem", "certificate.pem", "key.pem", "profile.json"])
def test_a_profile_that_is_not_whole_is_one_sentence(running, missing: str) -> None:
    (running.profile / missing).unlink()
    with pytest.raises(ConfigError, match=missing):
        operator_channel(running.profile)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"addresses_file": 7}', "null"])
def test_a_profile_that_names_no_address_is_one_sentence(running, content: str) -> None:
    (running.profile / "profile.json").write_text(content)
    with pytest.raises(ConfigError, match="names no address"):
        operator_channel(running.profile)


def test_while_the_aggregator_is_down_its_profile_says_so(cairn, running) -> None:
    running.aggregator.stop()
    said = cairn("sites", "--profile", running.profile)
    assert said.code == 1
    assert "is the aggregator running" in said.err
