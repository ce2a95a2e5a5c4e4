"""What an aggregator says by itself: ids in its log, certificates that end, metrics of disk, backups and members."""

import json
from collections.abc import Callable
from datetime import timedelta

import httpx
import pytest

from aggregator import database, tables
from aggregator.backup.making import make
from aggregator.checking import check_aggregator
from aggregator.settings import load_settings
from cairn.errors import WrongRole
from cairn.profile import operator_channel
from cairn.rpc import errors_from_wire, mtls_channel
from cairn.v1 import operations_pb2, operations_pb2_grpc
from tests.aggregator.conftest import Clock, Running


def metrics(running: Running) -> dict[str, float]:
    page = httpx.get(f"http://{running.aggregator.addresses.dashboard}/metrics").text
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in page.splitlines() if line[0] != "#"}


def test_a_certificate_that_nobody_renews_is_warned_of_in_log_check_and_metrics(running: Running, clock: Clock) -> None:
    running.join("north")
    running.aggregator._housekeeping.turn()
    settings = load_settings(running.folder / "aggregator.toml")
    assert "certificate ends soon" not in running.log.getvalue()
    assert not any("site" in one for one in check_aggregator(settings, clock()).warnings)
    ends = metrics(running)['cairn_certificate_ends_timestamp_seconds{holder="site/north"}']
    assert ends == pytest.approx((clock() + timedelta(days=365)).timestamp(), abs=7200)
    clock.advance(timedelta(days=340))
    running.aggregator._housekeeping.turn()
    warned = [json.loads(line) for line in running.log.getvalue().splitlines()]
    assert {line["holder"] for line in warned if line["event"] == "certificate ends soon"} == {
        "site/north",
        "operator/operator",
    }
    assert any("certificate of site/north ends" in one for one in check_aggregator(settings, clock()).warnings)
    with database.writing(running.aggregator.engine) as rows:
        rows.get_one(tables.Member, "north").state = "revoked"
    running.aggregator._housekeeping.turn()
    assert 'cairn_certificate_ends_timestamp_seconds{holder="site/north"}' not in metrics(running)


def test_metrics_tell_of_the_disk_of_members_and_of_the_last_backup(running: Running, clock: Clock, tmp_path) -> None:
    running.join("north")
    before = metrics(running)
    assert before["cairn_sites_enrolled"] == 1
    assert before["cairn_last_backup_timestamp_seconds"] == 0
    assert 0 < before["cairn_disk_free_bytes"] <= before["cairn_disk_bytes"]
    assert before['cairn_studies{state="failed"}'] == before["cairn_stages_overdue"] == 0
    make(running.folder, load_settings(running.folder / "aggregator.toml"), tmp_path / "b.tar", clock())
    assert metrics(running)["cairn_last_backup_timestamp_seconds"] == pytest.approx(clock().timestamp())


def test_a_refused_call_is_logged_with_who_made_it(running: Running) -> None:
    north = running.join("north")
    channel = mtls_channel(running.aggregator.addresses.address, north)
    with channel, pytest.raises(WrongRole), errors_from_wire():
        operations_pb2_grpc.SitesStub(channel).ListSites(operations_pb2.ListSitesRequest(), timeout=10)
    [line] = [json.loads(line) for line in running.log.getvalue().splitlines() if '"refused"' in line]
    assert (line["site"], line["kind"]) == ("north", "WrongRole")


def test_an_operators_command_reminds_of_a_certificate_that_ends_soon(
    start_aggregator: Callable[..., Running], clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.advance(timedelta(days=-350))
    running = start_aggregator()
    operator_channel(running.profile).close()
    assert "make a new one with `cairn aggregator renew`" in capsys.readouterr().err
