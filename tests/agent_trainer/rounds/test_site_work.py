import io
import json
import threading

import numpy as np
import pytest

from agent_trainer.config import DqnConfig
from agent_trainer.dqn import Learner
from agent_trainer.pretraining.config import PretrainConfig
from agent_trainer.pretraining.practice import PRETRAIN
from agent_trainer.rounds.edge_talk import EdgeTalk
from agent_trainer.rounds.layout import flatten, layout_of
from agent_trainer.rounds.masked_updates import FORM
from agent_trainer.rounds.models import Models
from agent_trainer.rounds.replay_plans import ReplayPlans
from agent_trainer.rounds.site_work import REMARKS, SiteSettings, SiteWork, run_digest, shown
from agent_trainer.rounds.wire import Order
from cairn import codec
from cairn.errors import ConfigError, PlanMismatch, PolicyError, TrainingError
from cairn.kernels import load
from cairn.plan import Plan, ReplayPlan, Secrecy, UpdatePlan, fingerprint
from cairn.sketch import Sketch
from cairn.tally import Tally, zeros
from cairn.transitions import TransitionCoder, cell_histogram

CONFIG = DqnConfig(
    tasks=("liver",),
    box=12,
    channels=(4,),
    kernels=(3,),
    hidden=(8,),
    step_limit=20,
    envs=4,
    batch=8,
    warm_up=16,
    capacity=500,
    steps_per_update=4,
    round_updates=5,
    replay="sketched",
    sketch_depth=3,
    sketch_width=256,
)
LEARNER = Learner(CONFIG, 1, 4, seed=1)
WEIGHTS = flatten(LEARNER.weights())


class Edge(io.StringIO):
    """The edge node at the other end: keeps what it hears, and answers updates at once."""

    def __init__(self, answer="send"):
        super().__init__()
        self.heard, self.answer, self.talk = [], answer, None

    def write(self, text):
        for line in text.splitlines():
            if line:
                news = json.loads(line)
                self.heard.append(news)
                if news["event"] == "update":
                    reply = {"do": self.answer, "id": news["id"], "sentence": "the disk is full"}
                    threading.Thread(target=self.talk.heard, args=(reply,)).start()
        return len(text)

    def events(self, kind):
        return [news for news in self.heard if news["event"] == kind]


def site(tmp_path, *, edge=None, scenes=None, runs=("run",), run_digests=None, plain=None, masked=None, processes=1):
    edge = edge or Edge()
    edge.talk = EdgeTalk(edge)
    spool = tmp_path / "spool"
    spool.mkdir(exist_ok=True)
    told = scenes or [{"kind": "generated", "tasks": ["liver"], "images": 4, "size": 32}]
    more = (run_digests, plain, masked, processes)
    settings = SiteSettings(runs, {"scenes": told}, "cpu", tmp_path / "site", spool, *more)
    return SiteWork(settings, Models(tmp_path / "models"), edge.talk, 7), edge


def order(number=1, config=CONFIG, **changes):
    values = {
        "run": "run",
        "number": number,
        "algorithm": "dqn",
        "settings": config.model_dump_json(),
        "seed": 3,
        "layout": layout_of(LEARNER.weights()),
        "evaluate": False,
        "deadline_s": 120.0,
    }
    return Order(**(values | changes))


def test_a_round_changes_the_weights_and_tells_how_it_went(tmp_path):
    work, edge = site(tmp_path)
    metrics, trained = work.train(order(), WEIGHTS)
    assert metrics["updates"] == 5
    assert metrics["examples"] == 3, "one of four images validates"
    assert metrics["loss"] > 0
    assert 0 < metrics["replay/fill"] < 1
    assert trained.shape == WEIGHTS.shape
    assert not np.array_equal(trained, WEIGHTS)
    phases = [news["phase"] for news in edge.events("round")]
    assert (phases[0], phases[-1]) == ("begins", "ends")
    assert set(phases[1:-1]) <= {"trains"}
    (update,) = edge.events("update")
    assert update["bytes"] == trained.nbytes


def test_an_order_that_comes_twice_is_answered_without_training_again(tmp_path):
    work, edge = site(tmp_path)
    first = work.train(order(), WEIGHTS)
    again = work.train(order(), WEIGHTS)
    assert again[0] == first[0]
    np.testing.assert_array_equal(again[1], first[1])
    assert len(edge.events("update")) == 1
    other = work.train(order(), WEIGHTS * np.float32(0.5))
    assert not np.array_equal(other[1], first[1]), "other weights are another order"


def test_learner_and_replay_stay_between_rounds(tmp_path):
    work, _ = site(tmp_path)
    work.train(order(1), WEIGHTS)
    practice = work._practice[1]
    held = len(practice.replay)
    work.train(order(2), WEIGHTS)
    assert work._practice[1] is practice
    assert practice.learner.updates == 10
    assert len(practice.replay) > held


def test_a_restarted_site_keeps_its_optimiser_and_its_exploration(tmp_path):
    work, _ = site(tmp_path)
    work.train(order(1), WEIGHTS)
    steps = work._practice[1]._steps
    restarted, _ = site(tmp_path)
    restarted.train(order(2), WEIGHTS)
    assert restarted._practice[1].learner.updates == 10
    assert restarted._practice[1]._steps > steps


def test_a_run_of_the_same_name_and_another_seed_begins_anew(tmp_path):
    work, _ = site(tmp_path)
    work.train(order(1), WEIGHTS)
    restarted, _ = site(tmp_path)
    restarted.train(order(1, seed=4), WEIGHTS)
    assert restarted._practice[1].learner.updates == 5


def test_a_replay_that_can_never_be_full_learns_all_the_same(tmp_path):
    """Of a few unique tuples, each kept once, no replay of this size ever holds as many as the warm-up's steps."""
    coarse = CONFIG.model_copy(update={"pool": (1, 1), "radix": 2, "capacity": 40, "warm_up": 200})
    work, _ = site(tmp_path)
    work.train(order(1, coarse), WEIGHTS)
    practice = work._practice[1]
    practice.replay.code_with(TransitionCoder((1, 1), np.full((1, 1), 128, np.uint8), 1, 4, coarse.reward_edges))
    metrics, _ = work.train(order(2, coarse), WEIGHTS)
    assert metrics["updates"] == 5
    assert len(practice.replay) < 40


def merged(published, rows):
    stage = codec.decode_plan(published).stage
    tables = zeros(stage)
    tables["transitions"] += len(rows)
    if isinstance(stage, ReplayPlan):
        sketch = Sketch(stage.sketch, load("numpy"))
        sketch.update(rows)
        tables[stage.table] += sketch.table
    else:
        tables["cells"] += cell_histogram(rows)
    return Tally(fingerprint(published), tables)


def test_cells_then_keys_are_handed_to_the_edge_and_the_merged_counts_draw_the_replay(tmp_path):
    work, edge = site(tmp_path)
    plans = ReplayPlans("run", CONFIG)
    for number in (1, 2, 3):
        plan, counts = plans.plan(number), plans.counts()
        content = b""
        if counts:
            codec.write_tally(tmp_path / "counts.tally", counts)
            content = (tmp_path / "counts.tally").read_bytes()
        metrics, _ = work.train(order(number, plan=plan, coder_plan=plans.published, counts=content), WEIGHTS)
        assert edge.events("replay")[-1]["fingerprint"] == fingerprint(plan).hex()
        rows = np.load(tmp_path / "spool" / f"{fingerprint(plan).hex()}.npy")
        assert rows.dtype == (np.uint8 if number == 1 else np.uint64)
        plans.absorb(plan, merged(plan, rows))
    assert 0 < metrics["replay/unique_share"] < 1
    practice = work._practice[1]
    keys = practice.replay._rows.table["key"][practice.replay._rows.by_age()]
    counted = practice.replay._estimate(keys)
    assert counted.max() > 1, "the federation's counts are in use"


def test_evaluation_measures_the_weights_that_came_and_keeps_them_for_the_page(tmp_path):
    work, _ = site(tmp_path)
    metrics = work.evaluate(order(4), WEIGHTS)
    assert metrics["validation/liver/n"] == 1
    assert metrics["validation/liver/mean_mm"] > 0
    model = Models(tmp_path / "models").load("run")
    assert (model.run, model.number) == ("run", 4)
    np.testing.assert_array_equal(flatten({name: model.weights[name] for name, _ in order().layout}), WEIGHTS)


def test_weights_of_another_network_are_refused(tmp_path):
    work, _ = site(tmp_path)
    with pytest.raises(TrainingError, match="another network"):
        work.train(order(layout=(("w", (3,)),)), np.zeros(3, np.float32))


def test_a_run_that_the_sites_policy_does_not_name_is_refused(tmp_path):
    work, edge = site(tmp_path, runs=("sella-*",))
    with pytest.raises(PolicyError, match="does not take part in the run run"):
        work.train(order(), WEIGHTS)
    assert edge.heard == []


def test_where_exact_runs_are_named_another_one_of_that_name_is_refused_with_its_digest(tmp_path):
    asked = order()
    work, _ = site(tmp_path, run_digests=[run_digest(asked)])
    assert work.train(asked, WEIGHTS)[0]["updates"] == 5
    other = order(seed=asked.seed + 1)
    with pytest.raises(PolicyError, match=f"has not approved the run run of digest {run_digest(other)}"):
        work.train(other, WEIGHTS)


def update_plan():
    stage = UpdatePlan(len(WEIGHTS), **vars(FORM))
    return codec.encode_plan(Plan("run", 1, stage, Secrecy(64, 400, 100)))


def test_where_updates_leave_masked_alone_a_plain_run_is_refused_before_it_learns_and_a_masked_one_is_not(tmp_path):
    work, edge = site(tmp_path, plain="updates leave masked alone")
    with pytest.raises(PolicyError, match=r"^updates leave masked alone; run is a plain run$"):
        work.train(order(), WEIGHTS)
    [said] = edge.heard
    assert (said["kind"], said["sentences"]) == (
        "a run is refused by this site's policy",
        ["updates leave masked alone; run is a plain run"],
    )
    metrics, trained = work.train(order(update_plan=update_plan()), WEIGHTS)
    assert trained is None
    assert metrics["updates"] == 5
    assert edge.events("problem")[-1]["sentences"] == [], "the refusal is not shown any more"


def test_where_nothing_leaves_without_noise_a_masked_run_is_refused_too(tmp_path):
    work, _ = site(tmp_path, plain="no noise", masked="no noise")
    with pytest.raises(PolicyError, match=r"^no noise; run is a masked run$"):
        work.train(order(update_plan=update_plan()), WEIGHTS)


def test_an_update_that_the_edge_keeps_back_is_not_sent(tmp_path):
    work, edge = site(tmp_path, edge=Edge("keep"))
    with pytest.raises(PolicyError, match=r"^the site keeps its update back: the disk is full$"):
        work.train(order(), WEIGHTS)
    edge.answer = "send"
    assert work.train(order(), WEIGHTS)[0]["updates"] == 5


def test_a_site_with_another_task_set_tells_its_people_why_and_the_aggregator_only_the_kind(tmp_path):
    work, edge = site(tmp_path, scenes=[{"kind": "generated", "tasks": ["spleen"], "images": 4, "size": 32}])
    with pytest.raises(ConfigError):
        work.train(order(), WEIGHTS)
    (problem,) = edge.events("problem")
    assert ["spleen" in sentence for sentence in problem["sentences"]] == [True]
    assert "spleen" not in problem["kind"]


def test_a_site_of_several_processes_is_told_when_an_algorithm_learns_in_one(tmp_path):
    work, edge = site(tmp_path, processes=2)
    agent = {"tasks": CONFIG.tasks, "box": CONFIG.box, "channels": CONFIG.channels, "kernels": CONFIG.kernels}
    config = PretrainConfig(method="autoencoder", encoder="dqn", agent=agent, batch=2, round_updates=1)
    weights = PRETRAIN.first_weights(config, 0)
    asked = order(config=config, algorithm="pretrain", layout=layout_of(weights))
    assert work.train(asked, flatten(weights))[0]["updates"] == 1
    (single,) = edge.events("problem")[-1]["sentences"]
    assert single == "training.processes is 2, and pretrain learns in one; it does so"


def test_a_site_is_told_what_its_machine_cannot_do(tmp_path):
    work, edge = site(tmp_path)
    assert work.train(order(config=CONFIG.model_copy(update={"precision": "mixed"})), WEIGHTS)[0]["updates"] == 5
    (plain,) = edge.events("problem")[-1]["sentences"]
    assert plain.startswith("mixed precision was asked for, and this machine trains without CUDA")


def test_of_many_remarks_the_newest_are_shown_and_the_others_counted():
    broken = [f"{n}.png: truncated" for n in range(REMARKS + 4)]
    told = shown([*broken, "the masks had collapsed"])
    assert told[:2] == ["the masks had collapsed", broken[-1]]
    assert told[REMARKS:] == ["and 5 more remarks on the data for training"]
    assert shown(broken[:REMARKS]) == broken[REMARKS - 1 :: -1]
    assert shown([]) == []


def test_a_deadline_that_leaves_no_time_for_an_update_is_an_error_and_not_an_old_weight(tmp_path):
    work, _ = site(tmp_path)
    with pytest.raises(TrainingError, match="left no time for an update"):
        work.train(order(deadline_s=1e-6), WEIGHTS)


def test_a_long_round_ends_before_its_deadline(tmp_path):
    work, _ = site(tmp_path)
    metrics, _ = work.train(order(config=CONFIG.model_copy(update={"round_updates": 10**9}), deadline_s=4.0), WEIGHTS)
    assert 0 < metrics["updates"] < 10**9
    assert metrics["seconds"] < 4.0


def test_counts_of_another_plan_are_refused(tmp_path):
    work, _ = site(tmp_path)
    plans = ReplayPlans("run", CONFIG)
    ranges = plans.plan(1)
    with pytest.raises(PlanMismatch, match="another kind"):
        work.train(order(coder_plan=ranges), WEIGHTS)
