"""One federation in containers under every fault: what a study finds is what it finds without the fault."""

import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from os import kill
from typing import Any

import numpy as np
import pytest
import tifffile
from rich.console import Console

from cairn.images import find_images
from cairn.profile import operator_channel
from deploy.dealing import deal
from deploy.demo import Recipe, generated
from deploy.federation import federation
from deploy.study_run import STUDY, run_study
from deploy.summary import export
from deploy.tissue import BANDS, STATE_RULES
from tests.containers.federation import IMAGES, SIDE, TOP_K, Composed
from tests.system.small_disk import fill, make_room

pytestmark = [pytest.mark.containers, pytest.mark.timeout(1800)]
BAND_NAMES = tuple(str(band) for band in BANDS)


@pytest.fixture(scope="module")
def unfaulted(composed: Composed) -> dict[str, Any]:
    """Run the study that every faulted one is compared with."""
    composed.create("calm", BAND_NAMES)
    found = composed.finished("calm")
    assert found["pixels"] == 2 * IMAGES * SIDE * SIDE
    assert found["counted"] > found["foreground"] / 2 > 0
    return found


@pytest.fixture
def cut_off(composed: Composed) -> Iterator[None]:
    """Cut site-1 off from the aggregator, silently, as a dead router does; whoever has it still, heals it."""
    address = composed.docker(
        "inspect", "--format", "{{range $k, $v := .NetworkSettings.Networks}}{{$v.IPAddress}} {{end}}",
        composed.container("aggregator"),
    ).split()  # fmt: skip
    for rule in ("INPUT -s", "OUTPUT -d"):
        for one in address:
            inside(composed, "site-1", "iptables", "-A", *rule.split(), one, "-j", "DROP")
    yield
    heal(composed)


def inside(composed: Composed, service: str, *command: str) -> str:
    """Run a command of this machine's in a container's network; the container itself has no right to."""
    entered = ["nsenter", "-t", str(composed.process(service)), "-n", *command]
    return subprocess.run(entered, check=True, capture_output=True, text=True).stdout


def dropped(composed: Composed) -> int:
    """Count the packets that the cut has swallowed."""
    rules = inside(composed, "site-1", "iptables", "-nvxL").splitlines()
    return sum(int(rule.split()[0]) for rule in rules if " DROP " in rule and not rule.startswith("Chain"))


def restarts(composed: Composed, service: str) -> int:
    """Count how often the engine has started a container again by itself."""
    return int(composed.docker("inspect", "--format", "{{.RestartCount}}", composed.container(service)))


def killed(composed: Composed, service: str, study: str, event: str) -> float:
    """Kill a service by signal 9 when site-1 says something of a study's counts; the seconds until it is healthy again.

    Everything is known before that line comes, so that the kill falls into what the line tells of.
    """
    starts, process = restarts(composed, service), composed.process(service)
    composed.create(study, BAND_NAMES)
    composed.wait_for_line("site-1", event=event, study=study, stage="counts")
    kill(process, signal.SIGKILL)
    began = time.monotonic()
    composed.wait(f"restart of {service}", lambda: restarts(composed, service) > starts)
    composed.wait_healthy(service)
    return time.monotonic() - began


def order(composed: Composed, service: str, study: str) -> list[str]:
    """Name what a service has logged of a study's counts, and where it began and ended itself, in order."""
    ours = {"study": study, "stage": "counts"}.items()
    of_itself = ("serving", "edge node runs", "edge node stops")
    lines = composed.lines(service)
    return [line["event"] for line in lines if line["event"] in of_itself or ours <= line.items()]


def merged_after_a_start(composed: Composed, study: str) -> bool:
    """Tell whether the aggregator last started between the sums of two stages: that of counts came afterwards."""
    lines = composed.lines("aggregator")
    last = max(number for number, line in enumerate(lines) if line["event"] == "serving")
    sums = {line["stage"]: number for number, line in enumerate(lines)
            if line["event"] == "merged" and line["study"] == study}  # fmt: skip
    return sums["ranges"] < last < sums["counts"]


def status(composed: Composed, service: str) -> str:
    """Ask a site how it stands, as its own people do."""
    asked = ("cairn", "edge", "status", "--config", "/etc/cairn/site.toml", "--json")
    return composed.docker("exec", composed.container(service), *asked)


def acknowledged(composed: Composed, service: str, study: str) -> bool:
    """Tell whether a tally of a site's has arrived, as its log says."""
    said = {"event": "tally acknowledged", "study": study}
    return any(said.items() <= line.items() for line in composed.lines(service))


def timed(do: Callable[[], object]) -> float:
    """Give the seconds that something takes."""
    began = time.monotonic()
    do()
    return time.monotonic() - began


def heal(composed: Composed) -> None:
    inside(composed, "site-1", "iptables", "-F")


def test_compose_up_finds_what_the_demo_finds(composed: Composed, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("demo")
    console = Console(quiet=True)
    hands = deal(find_images(generated(folder / "data", Recipe(2, IMAGES, SIDE, 0), console)), 2)
    with federation(folder / "federation", hands) as running:
        demo = run_study(running, BAND_NAMES, STATE_RULES, min_sites=2, top_k=TOP_K, console=console)
        with operator_channel(running.profile) as channel:
            found = export(channel)
    ours = composed.summary()
    for name in ("pixels", "foreground", "mass", "error_bound"):
        assert ours[name] == demo.results[name], name
    assert ours["recall"] == 1
    assert ours["clusters"] == demo.results["clusters"]
    table, by_key = composed.table(STUDY), np.argsort(found.keys)
    assert len(by_key) == TOP_K
    for column, of_demo in (("key", found.keys), ("count", found.counts), ("cluster", found.clusters)):
        np.testing.assert_array_equal(table.column(column), of_demo[by_key], err_msg=column)
    for hand in hands:
        files = sorted((running.site_folder(hand.site) / "labels" / STUDY).rglob("*.tif"))
        labels = composed.labels(hand.site, STUDY)
        assert [file.name for file in files] == sorted(labels) != []
        for file in files:
            np.testing.assert_array_equal(labels[file.name], tifffile.imread(file), err_msg=file.name)
            assert len(np.unique(labels[file.name])) > 1


def test_a_site_that_is_cut_off_takes_part_once_it_is_back(
    composed: Composed, unfaulted: dict[str, Any], cut_off: None, figures: dict[str, Any]
) -> None:
    composed.create("cut-off", BAND_NAMES)
    composed.wait_for_line("site-2", event="tally acknowledged", study="cut-off", stage="moments")
    composed.wait("packets that nobody got", lambda: dropped(composed) > 0)
    assert not [line for line in composed.lines("site-1") if line.get("study") == "cut-off"]
    heal(composed)
    figures["seconds from a healed partition to the site's tally"] = composed.wait(
        "tally of site-1", lambda: acknowledged(composed, "site-1", "cut-off")
    )
    assert composed.finished("cut-off") == unfaulted


def test_a_site_that_is_killed_while_it_counts_is_started_again_and_counts_again(
    composed: Composed, unfaulted: dict[str, Any], figures: dict[str, Any]
) -> None:
    figures["seconds from a killed edge to healthy"] = killed(composed, "site-1", "killed", "stage begins")
    assert composed.finished("killed") == unfaulted
    said = order(composed, "site-1", "killed")
    assert said[said.index("stage begins") + 1 :][:3] == ["edge node runs", "plan answered", "stage begins"], said


def test_a_site_that_is_frozen_is_found_unhealthy_and_goes_on_when_it_thaws(
    composed: Composed, unfaulted: dict[str, Any], figures: dict[str, Any]
) -> None:
    process = composed.process("site-1")
    composed.create("frozen", BAND_NAMES)
    composed.wait_for_line("site-1", event="stage begins", study="frozen", stage="counts")
    kill(process, signal.SIGSTOP)
    try:
        composed.wait("unhealth of site-1", lambda: composed.state("site-1")["Health"]["Status"] == "unhealthy")
        assert "tally sealed" not in order(composed, "site-1", "frozen")
    finally:
        kill(process, signal.SIGCONT)
    figures["seconds from a thawed edge to healthy"] = composed.wait_healthy("site-1")
    assert composed.finished("frozen") == unfaulted


def test_the_aggregator_killed_in_the_middle_of_a_stage_goes_on_where_it_was(
    composed: Composed, unfaulted: dict[str, Any], figures: dict[str, Any]
) -> None:
    took = killed(composed, "aggregator", "middle-killed", "tally sealed")
    figures["seconds from a killed aggregator to healthy"] = took
    assert composed.finished("middle-killed") == unfaulted
    assert merged_after_a_start(composed, "middle-killed")


def test_a_site_whose_disk_is_full_says_so_and_goes_on_when_there_is_room(
    composed: Composed, unfaulted: dict[str, Any], figures: dict[str, Any]
) -> None:
    fill(composed.disk)
    composed.create("full-disk", BAND_NAMES)
    composed.wait_for_line("site-1", event="tally acknowledged", study="full-disk", stage="moments")
    composed.wait("word of the full disk", lambda: "room on the disk" in status(composed, "site-2"))
    assert not acknowledged(composed, "site-2", "full-disk")
    make_room(composed.disk)
    figures["seconds from room on the disk to the site's tally"] = composed.wait(
        "tally of site-2", lambda: acknowledged(composed, "site-2", "full-disk")
    )
    assert composed.finished("full-disk") == unfaulted


def test_a_slow_link_makes_a_study_slow_and_changes_nothing(
    composed: Composed, unfaulted: dict[str, Any], figures: dict[str, Any]
) -> None:
    links = subprocess.run(
        ["nsenter", "-t", str(composed.process("site-1")), "-n", "ls", "/sys/class/net"],
        check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    ours = [name for name in links if name.startswith("eth")]
    for link in ours:
        shaped = ("root", "tbf", "rate", "512kbit", "burst", "8kb", "latency", "500ms")
        inside(composed, "site-1", "tc", "qdisc", "replace", "dev", link, *shaped)
    try:
        composed.create("slow-link", BAND_NAMES)
        began = time.monotonic()
        assert composed.finished("slow-link") == unfaulted
        figures["seconds of a study with a slow link"] = time.monotonic() - began
        held_back = [inside(composed, "site-1", "tc", "-s", "qdisc", "show", "dev", link) for link in ours]
        assert max(int(number) for said in held_back for number in re.findall(r"overlimits (\d+)", said)) > 100
    finally:
        for link in ours:
            inside(composed, "site-1", "tc", "qdisc", "del", "dev", link, "root")


@pytest.mark.parametrize("service", ["site-1", "aggregator"])
def test_a_service_that_is_stopped_in_the_middle_drains_and_ends_with_0(
    composed: Composed, unfaulted: dict[str, Any], service: str, figures: dict[str, Any]
) -> None:
    study = f"stopped-{service}"
    composed.create(study, BAND_NAMES)
    composed.wait_for_line("site-1", event="stage begins", study=study, stage="counts")
    figures[f"seconds to stop {service}"] = timed(
        lambda: composed.docker("stop", "--time", "40", composed.container(service))
    )
    ended = composed.state(service)
    assert (ended["ExitCode"], ended["OOMKilled"]) == (0, False)
    composed.docker("start", composed.container(service))  # not compose, which would run the steps before it again
    composed.wait_healthy(service)
    assert composed.finished(study) == unfaulted
    if service == "aggregator":
        assert merged_after_a_start(composed, study)
    else:
        said = order(composed, service, study)
        assert said.index("stage begins") < len(said) - said[::-1].index("edge node stops")
