"""Rounds with real processes: what is killed, hostile or missing costs no more than it must."""

import json
import os
import socket
import ssl
from itertools import cycle, product
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from agent_trainer.rounds import guard
from agent_trainer.rounds.flower import Control, Link
from cairn.codec import decode_plan
from cairn.errors import Unreachable
from cairn.plan import ReplayPlan, ReplayRangesPlan
from cairn.run import RunSpec
from tests.agent_trainer.rounds.halting_site import PLACES
from tests.agent_trainer.rounds.processes import PATIENCE_S, Federation, Site, free_port, until

pytestmark = pytest.mark.slow

SMALL = {
    "tasks": ["liver"],
    "box": 12,
    "channels": [4, 8],
    "kernels": [3, 3],
    "hidden": [16],
    "step_limit": 20,
    "envs": 4,
    "batch": 8,
    "warm_up": 40,
    "capacity": 2000,
    "steps_per_update": 4,
    "round_updates": 20,
    "sketch_depth": 3,
    "sketch_width": 512,
}
LONG = {**SMALL, "round_updates": 1500}  # long enough to be killed in

HOSTILE = """
import sys, threading
from pathlib import Path
import numpy as np
from agent_trainer.rounds.daemons import end_with_stdin
from agent_trainer.rounds.executors import SiteExecutor
from agent_trainer.rounds.flower import Link
from agent_trainer.rounds.wire import answer, read_order

def app(message, context):
    order, weights = read_order(message)
    if order.run == "raises":
        raise ValueError("John Doe, born 1.1.1950")
    return answer({"examples": 1.0}, weights * np.float32("nan"), message)

end_with_stdin()
SiteExecutor(Link(sys.argv[1], Path(sys.argv[2]).read_bytes()), app, lambda *_: None).serve(threading.Event())
"""


@pytest.fixture(scope="module")
def federation(tmp_path_factory):
    started = Federation(tmp_path_factory.mktemp("federation")).start()
    yield started
    started.close()


def spec(name, **changes):
    values = {"name": name, "algorithm": "dqn", "rounds": 3, "min_sites": 2, "round_deadline": 200, "settings": SMALL}
    return RunSpec.model_validate(values | changes)


def states(federation, run):
    return {n: {s.site: s.state for s in r.sites} for n, r in sorted(federation.aggregator.rounds[run].items())}


def weights(federation, run, number):
    return load_file(federation.folder / "runs" / run / f"round-{number:06d}" / "weights.safetensors")


def best(federation) -> int:
    """Of the run "whole", the round whose weights sites are left with."""
    rounds = federation.aggregator.rounds["whole"]
    return min((1, 2, 3), key=lambda n: rounds[n].metrics["validation/mean_mm"])


def test_three_rounds_train_validate_and_count_over_all_sites(federation):
    run = spec("whole", settings={**SMALL, "replay": "sketched"})
    assert federation.finish(run) == ("done", "all 3 rounds are done")
    trained = {"north": "trained", "south": "trained"}
    assert states(federation, "whole") == {1: trained, 2: trained, 3: trained}
    rounds = federation.aggregator.rounds["whole"]
    assert all(rounds[n].metrics["updates"] == 40 for n in (1, 2, 3))
    assert all(rounds[n].metrics["validation/mean_mm"] > 0 for n in (1, 2, 3)), "the last weights' too"
    assert all(site.bytes > 0 and site.metrics["loss"] > 0 for site in rounds[3].sites)
    stages = [decode_plan(plan).stage for plan in federation.aggregator.plans.values()]
    assert [type(stage) for stage in stages] == [ReplayRangesPlan, ReplayPlan, ReplayPlan]
    assert rounds[3].metrics["replay/unique_share"] < 1
    for site in federation.sites.values():
        assert [news["fingerprint"] for news in site.news if news["event"] == "replay"] == [
            digest.hex() for digest in federation.aggregator.plans
        ]
        until("the site has the best round", lambda site=site: site.phases("whole")[-1] == (best(federation), "ends"))
    made = weights(federation, "whole", 3)
    assert all(np.isfinite(array).all() for array in made.values())
    assert not np.array_equal(made["last.weight"], weights(federation, "whole", 2)["last.weight"])


def test_the_page_lists_shows_and_searches_with_the_federations_best_model(federation):
    site = federation.sites["north"]
    assert site.answer(do="ping", id="1")["event"] == "pong"
    listed = site.answer(do="scenes", id="2")
    assert {model["run"] for model in listed["models"]} == {"whole"}
    assert listed["models"][0]["round"] == best(federation)
    image = listed["scenes"][0]["image"]
    assert (listed["scenes"][0]["tasks"], listed["scenes"][0]["width"]) == (["liver"], 40)
    assert site.answer(do="image", id="3", image=image, slice=0)["width"] == 40
    path = site.answer(do="search", id="4", run=None, task="liver", image=image, start=[8.0, 30.0])
    assert (path["event"], path["positions"][0]) == ("path", [8, 30])
    assert len(path["positions"]) == len(path["q"]) == len(path["boxes"]) == len(path["distance_mm"])
    assert path["error_mm"] == pytest.approx(path["distance_mm"][path["end"]])
    refused = site.answer(do="search", id="5", run=None, task="spleen", image=image, start=[8.0, 30.0])
    assert (refused["event"], "spleen" in refused["sentence"]) == ("refused", True)


def test_the_middle_killed_between_rounds_goes_on_behind_its_checkpoint(federation):
    federation.aggregator.submit(spec("middle-killed", rounds=4))
    until("the second round is reported", lambda: ("middle-killed", 2) in federation.aggregator.reported)
    federation.kill("middle")
    before = len(federation.aggregator.rounds["middle-killed"])
    federation.start_middle()
    assert federation.wait_for("middle-killed")[0] == "done"
    assert len(states(federation, "middle-killed")) == 4
    assert "goes on behind round" in federation.aggregator.logs["middle-killed"][0]
    assert before < 4


def test_superlink_killed_in_mid_run_costs_nothing(federation):
    federation.aggregator.submit(spec("link-killed", rounds=2, settings=LONG, round_deadline=200))
    until("a site trains", lambda: (1, "begins") in federation.sites["north"].phases("link-killed"))
    federation.kill("superlink")
    federation.start_link()
    assert federation.wait_for("link-killed")[0] == "done"
    assert all(
        list(sites.values()) == ["trained", "trained"] for sites in states(federation, "link-killed").values()
    ), states(federation, "link-killed")


def kill_and_restart(federation, victim):
    """Kill one of them as a power cut would, and start it again, as its supervisor does."""
    north = federation.sites["north"]
    if victim == "SuperNode":
        met = federation.said("north-node").count("SuperNode ID:")
        federation.kill("north-node")
        north.start_node()
        until("SuperLink knows north again", lambda: federation.said("north-node").count("SuperNode ID:") > met)
    elif victim == "SuperLink":
        federation.kill("superlink")
        federation.start_link()
    else:
        federation.kill("north-trainer")
        north.start_trainer()


VICTIMS = ("ClientApp", "SuperNode", "SuperLink")
EVERY = list(product(PLACES, VICTIMS))
KILLS = EVERY if os.environ.get("CAIRN_KILLS") == "all" else list(zip(PLACES, cycle(VICTIMS), strict=False))


@pytest.mark.parametrize(("place", "victim"), KILLS)
def test_whoever_is_killed_wherever_in_a_run_it_ends_and_the_site_is_in_the_next(federation, place, victim):
    """One victim a place; `CAIRN_KILLS=all`: every victim at every place."""
    halts, run = federation.sites["north"].halts, f"{place}-{victim}".lower()
    (halts / place).touch()
    # What SuperLink held is asked for again; an update that died with its site, at half the deadline.
    deadline = 200 if victim == "SuperLink" else 40
    federation.aggregator.submit(spec(run, rounds=2, min_sites=1, round_deadline=deadline))
    until(f"north is at {place}", (halts / f"{place}.reached").exists)
    kill_and_restart(federation, victim)
    (halts / f"{place}.reached").unlink()
    assert federation.wait_for(run)[0] == "done"
    for number, sites in states(federation, run).items():
        assert sites["south"] == "trained", (number, sites)
        trained = sum(state == "trained" for state in sites.values())
        assert federation.aggregator.rounds[run][number].metrics["updates"] == 20 * trained, number


def test_a_run_that_is_stopped_ends_after_its_round_and_can_be_resumed(federation):
    federation.aggregator.submit(spec("stopped", rounds=1000))
    until("a round is reported", lambda: "stopped" in federation.aggregator.rounds)
    federation.aggregator.stopping.add("stopped")
    assert federation.wait_for("stopped")[0] == "stopped"
    federation.aggregator.stopping.clear()
    done = len(federation.aggregator.rounds["stopped"])
    assert federation.finish(spec("stopped", rounds=done + 1))[0] == "done"
    assert len(federation.aggregator.rounds["stopped"]) == done + 1


def test_settings_that_are_unknown_end_the_run_with_one_sentence(federation):
    state, sentence = federation.finish(spec("unknown", settings={"gama": 0.5}))
    assert (state, "gama" in sentence) == ("failed", True)


def test_a_supernode_whose_key_nobody_registered_is_turned_away_and_asked_for_nothing(federation):
    mallory = Site(federation, "mallory")
    mallory.port = free_port()
    assert mallory.spawn_node().wait(PATIENCE_S) != 0
    assert "Failed to activate SuperNode" in federation.said("mallory-node")
    assert federation.finish(spec("without-mallory", rounds=1))[0] == "done"
    assert set(states(federation, "without-mallory")[1]) == {"north", "south"}


def test_an_update_that_the_edge_keeps_back_leaves_no_trace_outside(federation):
    south = federation.sites["south"]
    south.answer_to_updates = "keep"
    assert federation.finish(spec("kept", rounds=1, min_sites=1))[0] == "done"
    south.answer_to_updates = "send"
    (found,) = [site for site in federation.aggregator.rounds["kept"][1].sites if site.site == "south"]
    assert found.state == "failed"
    assert found.reason == "PolicyError: the site keeps its update back: the disk is full"


def test_a_hostile_or_broken_app_is_refused_and_its_words_stay_at_the_site(federation, tmp_path):
    south = federation.sites["south"]
    federation.kill("south-trainer")
    script = tmp_path / "hostile.py"
    script.write_text(HOSTILE)
    south.start_script(script)
    assert federation.finish(spec("diverged", rounds=2, min_sites=1))[0] == "done"
    for number in (1, 2):
        (found,) = [s for s in federation.aggregator.rounds["diverged"][number].sites if s.site == "south"]
        assert (found.state, found.reason.startswith("Diverged: ")) == ("refused", True), found
    assert all(np.isfinite(array).all() for array in weights(federation, "diverged", 2).values())
    assert federation.finish(spec("raises", rounds=1, min_sites=1))[0] == "done"
    (found,) = [s for s in federation.aggregator.rounds["raises"][1].sites if s.site == "south"]
    assert found.reason.startswith("ValueError: the site's incident ")
    assert not [path for path in federation.folder.glob("*.log") if "John Doe" in path.read_text(errors="replace")]


def test_superlink_serves_strangers_nothing_but_its_health_and_the_signed_api(federation):
    assert federation.get("/health") == 200
    assert [federation.get(path) for path in ("/docs", "/openapi.json", "/v1/control/list-nodes")] == [404] * 3
    ca = (federation.folder / "ca.pem").read_bytes()
    stranger = Link(f"127.0.0.1:{federation.link_port}", b"guessed", ca)
    with Control(stranger) as control, pytest.raises(Unreachable, match="answered 404"):
        control.nodes()
    older = ssl.create_default_context(cadata=ca.decode())
    older.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection(("127.0.0.1", federation.link_port)) as line,
        pytest.raises(ssl.SSLError),
    ):
        older.wrap_socket(line, server_hostname="127.0.0.1")


def test_nothing_was_written_to_the_home_folder_and_nothing_was_installed(federation):
    assert not (Path.home() / ".flwr").exists()
    assert not list(federation.folder.glob("**/apps/*")), "Flower unpacked an app"
    assert json.loads(json.dumps(guard.OPEN_PATHS)) == ["/v1/fleet/", "/health"]
