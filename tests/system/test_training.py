"""Whole federations that train: a run to its end, what it leaves behind, and everything that may go wrong in one.

One federation serves all tests, in their order. What a round does with lost messages, and SuperLink killed, is tested
in `tests/agent_trainer/rounds`; children of killed services in `tests/aggregator/runs` and `tests/edge_node/training`.
"""

import json
import shutil
import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import psutil
import pytest
import tomli_w
from safetensors.numpy import load_file, save_file

from aggregator.intake.merging import load_merged
from cairn import codec
from cairn.errors import CairnError
from cairn.tally import Tables, add
from deploy.processes import Program
from edge_node import audit
from tests.system.observing import Observed
from tests.system.training import (
    SITES,
    audit_lines,
    cairn,
    create,
    ended,
    log_of,
    rounds_of,
    run_of,
    states_of,
    status,
    train,
    training_federation,
    trains,
    wait_in,
    wait_until,
)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
LONG = 400  # updates of a round that a kill falls into
TRAINED = dict.fromkeys(SITES, "trained")


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Observed]:
    with training_federation(tmp_path_factory.mktemp("training") / "all") as running:
        yield running


@pytest.fixture(scope="module")
def whole(seen: Observed) -> dict[str, Any]:
    """A run of three rounds in which all sites take part, as its researcher sees it."""
    told: dict[str, Any] = json.loads(train(seen, "open-whole", "--rounds", 3, "--min-sites", 3, "--json"))
    return told


def uploaded(seen: Observed, name: str) -> dict[int, dict[str, Tables]]:
    """Read the tallies of a run's replay plans in the ledger, by round and site."""
    found: dict[int, dict[str, Tables]] = {}
    for (_, number), (fingerprint, plan) in seen.plans(name).items():
        rows = seen.uploads(fingerprint)
        assert len({row.site for row in rows}) == len(rows)
        found[number] = {
            row.site: load_merged(seen.store(), row.digest, fingerprint, plan.stage).tables for row in rows
        }
    return found


def assert_merges_are_sums(seen: Observed, name: str) -> None:
    """Compare every merged replay table with the sum of the ledger's uploads, and their sum with the checkpoint."""
    sums: Tables = {}
    for (stage, number), (fingerprint, plan) in seen.plans(name).items():
        expected = {table: np.zeros(shape, np.int64) for table, shape in plan.stage.shapes().items()}
        for one in uploaded(seen, name)[number].values():
            add(expected, one)
        merged = seen.merged(name, stage, number)
        for table, values in expected.items():
            np.testing.assert_array_equal(merged[table], values, err_msg=f"{stage} {number} {table} {fingerprint}")
        if stage == "replay":
            add(sums, merged) if sums else sums.update(expected)
    if not sums:
        return
    newest = max((seen.running.state / "runs" / name).glob("round-*"))
    kept = codec.read_tally(newest / "replay.tally").tables
    for table, values in sums.items():
        np.testing.assert_array_equal(kept[table], values, err_msg=f"checkpoint {table}")


def test_a_run_goes_to_its_end_and_tells_what_every_site_did(whole: dict[str, Any]) -> None:
    assert (whole["summary"]["state"], whole["summary"]["round"]) == ("done", 3)
    assert [one["round"] for one in whole["rounds"]] == [1, 2, 3]
    for one in whole["rounds"]:
        sites = {site["site"]: site for site in one["sites"]}
        assert {name: site["state"] for name, site in sites.items()} == TRAINED
        for site in sites.values():
            told = site["metrics"]
            assert told["updates"] == 15
            assert told["loss"] > 0
            assert abs(told["reward"]) < 1.5, "a step is one pixel of 1 mm"
            assert 1 <= told["replay/effective"] <= told["replay/fill"] * 4000 + 1
            assert told["validation/liver/n"] == 1
            assert told["validation/liver/mean_mm"] >= 0
        errors = [site["metrics"]["validation/liver/mean_mm"] for site in sites.values()]
        assert one["metrics"]["validation/mean_mm"] == pytest.approx(np.mean(errors))
        assert one["metrics"]["updates"] == 45
    assert all(0 < site["metrics"]["replay/unique_share"] <= 1 for site in whole["rounds"][2]["sites"])


def test_bytes_are_those_of_the_model_both_ways_and_of_what_comes_along(seen: Observed, whole: dict[str, Any]) -> None:
    made = load_file(seen.running.state / "runs" / "open-whole" / "round-000003" / "weights.safetensors")
    model = sum(array.nbytes for array in made.values())
    assert all(np.isfinite(array).all() for array in made.values())
    for site in whole["rounds"][0]["sites"]:
        assert 2 * model < site["bytes"] < 2 * model + 2000, "the first round brings a plan and no counts"
    counted = (seen.running.state / "runs" / "open-whole" / "round-000002" / "replay.tally").stat().st_size
    for site in whole["rounds"][2]["sites"]:
        assert site["bytes"] > 2 * model + counted


def test_the_merged_replay_is_the_sum_of_what_the_sites_counted_themselves(
    seen: Observed, whole: dict[str, Any]
) -> None:
    assert sorted(seen.plans("open-whole")) == [("replay", 2), ("replay", 3), ("replay_ranges", 1)]
    assert_merges_are_sums(seen, "open-whole")
    steps = {
        number: {site["site"]: int(site["metrics"]["steps"]) for site in one["sites"]}
        for number, one in enumerate(whole["rounds"], 1)
    }
    found = {
        number: {site: int(one["transitions"][0]) for site, one in sites.items()}
        for number, sites in uploaded(seen, "open-whole").items()
    }
    assert found[1] == steps[1]
    # The coder comes with round 2, and with it the keys of all transitions until then.
    assert found[2] == {site: steps[1][site] + steps[2][site] for site in SITES}
    assert found[3] == steps[3]


def test_a_masked_round_leaves_the_aggregator_sums_alone(seen: Observed) -> None:
    options = ("--rounds", 1, "--min-sites", 3, "--json")
    told = json.loads(train(seen, "open-masked", *options, masking="on"))
    assert told["summary"]["state"] == "done", log_of(seen, "open-masked")
    (one,) = told["rounds"]
    assert {site["site"]: site["state"] for site in one["sites"]} == TRAINED
    assert all("examples" not in site["metrics"] and site["metrics"]["loss"] > 0 for site in one["sites"])
    assert one["metrics"]["examples"] >= len(SITES)
    cells = seen.merged("open-masked", "replay_ranges", 1)["transitions"]
    assert int(cells[0]) == sum(site["metrics"]["steps"] for site in one["sites"])
    made = load_file(seen.running.state / "runs" / "open-masked" / "round-000001" / "weights.safetensors")
    numbers = sum(array.size for array in made.values())
    for (stage, _), (fingerprint, plan) in seen.plans("open-masked").items():
        assert plan.secrecy is not None
        rows = seen.uploads(fingerprint)
        assert sorted(row.site for row in rows) == sorted(SITES)
        for row in rows:
            with seen.store().open(row.digest) as file:
                words = np.frombuffer(file.read(), "<u8")
            assert len(words) == plan.cells
            assert stage != "update" or len(words) == numbers + 1
            # Small counts and changes would leave the highest byte 0 or 255.
            assert np.isin(words >> 56, (0, 255)).mean() < 0.05
    for site in SITES:
        lines = [line for line in audit_lines(seen, site) if line["study"] == "open-masked"]
        assert "update" not in {line["event"] for line in lines}
        assert sum(line["what"] == "masked tally of update" and line["event"] == "tally" for line in lines) == 1


@pytest.mark.parametrize("site", SITES)
def test_a_sites_audit_log_has_a_line_for_every_update_and_tally_that_left(
    site: str, seen: Observed, whole: dict[str, Any]
) -> None:
    lines = [line for line in audit_lines(seen, site) if line["study"] == "open-whole"]
    updates = [(line["window"], line["size"]) for line in lines if line["event"] == "update"]
    made = load_file(seen.running.state / "runs" / "open-whole" / "round-000003" / "weights.safetensors")
    assert updates == [(number, sum(array.nbytes for array in made.values())) for number in (1, 2, 3)]
    for (stage, number), (fingerprint, _) in seen.plans("open-whole").items():
        (row,) = [row for row in seen.uploads(fingerprint) if row.site == site]
        for event in ("tally", "acknowledged"):
            (line,) = [line for line in lines if line["event"] == event and line["plan"] == fingerprint]
            assert (line["stage"], line["window"], line["digest"], line["size"]) == (
                stage,
                number,
                row.digest,
                row.size,
            )
    assert audit.first_broken(seen.running.site_folder(site) / "state" / "audit.jsonl") is None


def test_a_site_leaves_out_the_images_that_cannot_be_used_and_names_them_at_home_alone(
    seen: Observed, whole: dict[str, Any]
) -> None:
    problems = status(seen, "site-3").problems
    assert len(problems) == 2
    for part in ("good-3.png: the landmark of liver lies outside the image", "nan.tif: "):
        assert any(part in problem for problem in problems)
    examples = {site["site"]: site["metrics"]["examples"] for site in whole["rounds"][0]["sites"]}
    assert examples == {"site-1": 3, "site-2": 3, "site-3": 1}
    assert "something is wrong with the data for training" in listed(seen, "site-3")
    for path in (seen.running.folder / "logs" / "aggregator.log", seen.running.state / "cairn.db"):
        assert not any(name in path.read_bytes() for name in (b"good-3", b"nan.tif"))


def listed(seen: Observed, site: str) -> str:
    """What the operator's list says of a site."""
    sites = json.loads(cairn(seen, "aggregator", "sites", "--json"))["sites"]
    return json.dumps(next(one for one in sites if one["name"] == site))


def test_a_run_can_be_shown_again_and_its_best_model_measured(seen: Observed, whole: dict[str, Any]) -> None:
    assert json.loads(cairn(seen, "runs", "show", "open-whole", "--json")) == whole
    scenes = seen.running.folder / "scenes.toml"
    made = {"kind": "generated", "images": 3, "size": 40, "seed": 9, "tasks": ["liver"]}
    scenes.write_text(tomli_w.dumps({"scenes": [made]}))
    told = json.loads(cairn(seen, "evaluate", "open-whole", "--scenes", scenes, "--starts", 2, "--json"))
    best = min(whole["rounds"], key=lambda one: one["metrics"]["validation/mean_mm"])
    assert told["round"] == best["round"]
    assert told["tasks"]["liver"]["n"] == 3


@pytest.mark.parametrize(
    ("task", "kind", "sentence"),
    [
        ("spleen", "ConfigError", "this site has no image with a landmark of the run's tasks (spleen); it has"),
        ("heart", "ImageError", "this site has one image with a landmark of the run's tasks; expected at least two"),
        ("bladder", "ConfigError", "good-1.png: the file does not say how many mm a pixel is; set spacing_mm"),
        ("left-kidney", "Diverged", ""),
    ],
    ids=["another task set", "one image", "no image, as none has a spacing", "a diverged update"],
)
def test_a_run_ends_without_a_site_that_cannot_learn_and_the_site_says_why(
    task: str, kind: str, sentence: str, seen: Observed
) -> None:
    create(seen, f"open-{task}", tasks=[task])
    assert ended(seen, f"open-{task}").state == "done"
    sites = rounds_of(seen, f"open-{task}")[1]
    assert [sites[site]["state"] for site in SITES] == ["trained", "trained", "failed"]
    assert sites["site-3"]["reason"].startswith(f"{kind}: ")
    assert "good-1" not in sites["site-3"]["reason"]
    assert log_of(seen, f"open-{task}") == [f"round 1: site-3 failed: {sites['site-3']['reason']}"]
    assert sentence in "\n".join(status(seen, "site-3").problems)


def test_where_all_sites_diverge_the_run_fails_and_its_log_names_each(seen: Observed) -> None:
    create(seen, "open-wild", learning_rate=1e30)
    run = ended(seen, "open-wild")
    assert run.state == "failed"
    assert run.message.startswith("round 1 failed 3 times: 0 sites trained where 2 are needed (site-1 failed")
    for site in SITES:
        assert f"round 1: {site} failed: Diverged: " in cairn(seen, "runs", "logs", "open-wild")


def test_below_quorum_a_run_fails_with_one_sentence_and_is_finished_when_the_site_is_back(seen: Observed) -> None:
    with pytest.raises(CairnError, match=r"the run private has failed: round 1 failed 3 times: 2 sites trained where"):
        train(seen, "private", "--rounds", 1, "--min-sites", 3, "--json")
    refusal = "PolicyError: this site does not take part in the run private"
    assert f"round 1: site-3 failed: {refusal}" in log_of(seen, "private")
    answers = [line["what"] for line in audit_lines(seen, "site-3") if line["study"] == "private"]
    assert [what.startswith("does not take part: ") for what in answers] == [True], "and nothing else left"

    seen.running.sites["site-3"].stop()
    config = seen.running.site_folder("site-3") / "site.toml"
    config.write_text(config.read_text().replace('"open-*"', '"*"'))
    seen.running.start_site("site-3")
    said = cairn(seen, "runs", "resume", "private")
    assert "cairn runs show private --watch" in said
    assert json.loads(cairn(seen, "runs", "show", "private", "--watch", "--json"))["summary"]["state"] == "done"
    assert states_of(seen, "private") == {1: TRAINED}
    assert_merges_are_sums(seen, "private")


def children_of(program: Program) -> list[psutil.Process]:
    return psutil.Process(program.process.pid).children(recursive=True)


@pytest.mark.usefixtures("whole")  # all sites are there
def test_a_site_killed_in_mid_round_costs_its_update_and_is_in_a_later_round_again(seen: Observed) -> None:
    create(seen, "open-faults", rounds=1000, round_updates=LONG)
    wait_in(seen, "open-faults", "site-2 trains", lambda: trains(seen, "site-2", "open-faults", 1))
    seen.running.sites.pop("site-2").kill()
    wait_in(seen, "open-faults", "the round's end", lambda: 1 in states_of(seen, "open-faults"))
    first = rounds_of(seen, "open-faults")[1]
    assert [first[site]["state"] for site in ("site-1", "site-3")] == ["trained", "trained"]
    told = (first["site-2"]["state"], first["site-2"]["reason"].partition(" within")[0])
    assert told in {("failed", "its SuperNode went away in mid-round"), ("late", "it did not answer")}
    seen.running.start_site("site-2")
    wait_in(seen, "open-faults", "its return", lambda: TRAINED in states_of(seen, "open-faults").values())
    assert "ends with its round" in cairn(seen, "runs", "stop", "open-faults")
    stopped = ended(seen, "open-faults")
    assert (stopped.state, stopped.message) == ("stopped", f"stopped by an operator after round {stopped.round}")
    assert list(states_of(seen, "open-faults")) == list(range(1, stopped.round + 1))
    assert_merges_are_sums(seen, "open-faults")


def test_a_checkpoint_of_another_network_is_refused_in_one_sentence_and_the_run_goes_on_with_the_right_one(
    seen: Observed,
) -> None:
    create(seen, "open-other", rounds=1000)
    wait_in(seen, "open-other", "a round", lambda: run_of(seen, "open-other").round > 0)
    cairn(seen, "runs", "stop", "open-other")
    before = ended(seen, "open-other").round
    newest = max((seen.running.state / "runs" / "open-other").glob("round-*"))
    right = shutil.copy(newest / "weights.safetensors", seen.running.folder)
    save_file({**load_file(right), "last.bias": np.zeros(6, np.float32)}, newest / "weights.safetensors")
    cairn(seen, "runs", "resume", "open-other")
    with pytest.raises(CairnError) as refused:
        cairn(seen, "runs", "show", "open-other", "--watch")
    sentence = f"the checkpoint of round {before} has the array last.bias of (6,) where last.bias of (4,) was"
    assert sentence in str(refused.value)
    shutil.copy(right, newest / "weights.safetensors")
    cairn(seen, "runs", "resume", "open-other")
    wait_in(seen, "open-other", "a round more", lambda: run_of(seen, "open-other").round > before)
    cairn(seen, "runs", "stop", "open-other")
    stopped = ended(seen, "open-other")
    assert stopped.state == "stopped"
    assert list(states_of(seen, "open-other")) == list(range(1, stopped.round + 1))


@pytest.mark.usefixtures("whole")  # all sites are there
def test_an_aggregator_killed_in_mid_round_costs_no_round_and_counts_none_twice(seen: Observed) -> None:
    create(seen, "open-restart", rounds=3, min_sites=3, round_updates=LONG)
    wait_in(seen, "open-restart", "site-1 trains", lambda: trains(seen, "site-1", "open-restart", 2))
    left = children_of(seen.running.aggregator)
    seen.running.aggregator.kill()
    assert psutil.wait_procs(left, timeout=30)[1] == [], "SuperLink and trainer end with their aggregator"
    seen.running.start_aggregator()
    finished = ended(seen, "open-restart")
    assert (finished.state, finished.message) == ("done", "all 3 rounds are done")
    assert states_of(seen, "open-restart") == dict.fromkeys((1, 2, 3), TRAINED)
    assert "goes on behind round 1" in log_of(seen, "open-restart")
    assert_merges_are_sums(seen, "open-restart")
    for number, sites in uploaded(seen, "open-restart").items():
        assert sorted(sites) == list(SITES), number
    for site in SITES:
        sent = [line["plan"] for line in audit_lines(seen, site) if line["event"] == "acknowledged"]
        assert len(sent) == len(set(sent))


def test_a_federation_that_is_stopped_leaves_no_process_and_no_port_behind(seen: Observed) -> None:
    """The last test: there is no federation after it."""
    wait_until(seen, "all processes", lambda: all(len(children_of(one)) >= 2 for one in seen.running.programs))
    processes = [child for program in seen.running.programs for child in children_of(program)]
    everyone = [*processes, *(psutil.Process(program.process.pid) for program in seen.running.programs)]
    ports = {
        (connection.laddr.ip, connection.laddr.port)
        for process in everyone
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert len(ports) >= 4 + 3 * 3, "the aggregator's three and SuperLink's; a site's two and its SuperNode's"
    seen.running.stop()
    assert [program.process.returncode for program in seen.running.programs] == [0] * 4
    assert psutil.wait_procs(processes, timeout=10)[1] == []
    for address in ports:
        socket.create_server(address).close()
