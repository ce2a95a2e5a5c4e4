"""What a researcher may ask of a training run."""

import pytest

from cairn.errors import TrainingError
from cairn.run import OPTIONS, RunSpec, parse_run, read_run, run_message

ASKED = {"name": "sella", "algorithm": "dqn", "rounds": 5, "min_sites": 2}


def test_a_strategy_brings_its_numbers_and_a_researcher_may_change_them() -> None:
    run = parse_run({**ASKED, "strategy": "fedavgm", "strategy_options": {"server_momentum": 0.5}})
    assert run.options == {"server_learning_rate": 1.0, "server_momentum": 0.5}


@pytest.mark.parametrize("strategy", OPTIONS)
def test_every_strategy_can_be_asked_for_by_name(strategy: str) -> None:
    assert parse_run({**ASKED, "strategy": strategy}).strategy == strategy


def test_a_run_survives_being_stored() -> None:
    run = parse_run({**ASKED, "settings": {"tasks": ["sella"], "gamma": 0.9}, "round_deadline": 30})
    assert RunSpec.model_validate(run.model_dump(mode="json")) == run


def test_a_run_crosses_the_wire_unchanged() -> None:
    run = parse_run(
        {
            **ASKED,
            "strategy": "fedprox",
            "strategy_options": {"proximal_mu": 0.5},
            "settings": {"tasks": ["sella"], "scales": [2, 1]},
            "round_deadline": 30.5,
            "evaluate_every": 0,
            "patience": 3,
            "seed": 2**40,
            "masking": "off",
            "site_figures": "none",
            "masking_patience": 7,
            "may_drop": 0,
            "may_collude": 250,
            "norm_bound": 0.5,
            "noise": 1.5,
        }
    )
    assert read_run(run_message(run)) == run


def test_settings_that_are_no_json_are_refused() -> None:
    message = run_message(parse_run(ASKED))
    message.settings_json = "{"
    with pytest.raises(TrainingError, match=r"^settings, or a search: "):
        read_run(message)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "Bad Name"}, "^name: "),
        ({"rounds": 0}, "^rounds: "),
        ({"min_sites": None}, "^min_sites: "),
        ({"strategy": "best"}, "^strategy: "),
        ({"strategy_options": {"momentum": 1.0}}, "fedavg has no option 'momentum'; it takes none"),
        ({"hurry": True}, "^hurry: "),
        ({"masking": "on"}, "a masked sum needs 3 sites or more and min_sites is 2"),
        ({"min_sites": 3, "strategy": "krum"}, "krum looks at the update of each site by itself"),
        ({"noise": 1.0}, "noise hides updates of a bounded length alone; give norm_bound too"),
        ({"noise": 1.0, "norm_bound": 1.0, "strategy": "krum"}, "krum needs each site's own update"),
        ({"min_sites": 3, "site_figures": "none", "patience": 2}, "sites that tell no figures validate nothing"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_sentence(change: dict[str, object], said: str) -> None:
    with pytest.raises(TrainingError, match=said):
        parse_run({**ASKED, **change})


@pytest.mark.parametrize(
    ("asked", "masked"),
    [({}, False), ({"min_sites": 3}, True), ({"min_sites": 3, "masking": "off"}, False), ({"search": {}}, False)],
)
def test_a_run_is_masked_where_three_sites_answer_unless_somebody_says_otherwise(asked, masked) -> None:
    assert parse_run({**ASKED, **asked}).masked is masked
