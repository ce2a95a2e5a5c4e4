"""The networks of attention sampling: the paper's sizes, weights that travel, other classifiers, the policy."""

import numpy as np
import pytest
import torch

from agent_trainer.attention_config import AttentionConfig, read_attention_config
from agent_trainer.attention_networks import REACH, AttentionNetwork, ConditionalPolicy, FeatureNetwork, Networks
from cairn.errors import ConfigError, Diverged, TrainingError

PAPER = AttentionConfig(classes=("cll", "fl", "mcl"))
CONDITIONAL = PAPER.model_copy(update={"sampling": "conditional"})


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def test_the_attention_network_has_the_papers_1513_parameters():
    assert count(AttentionNetwork(PAPER)) == 1513


def test_the_feature_network_has_the_papers_7459_parameters():
    assert count(FeatureNetwork(PAPER)) == 7459


@pytest.mark.parametrize("pooling", ["max", "mean"])
def test_votes_have_length_one_and_the_map_is_as_large_as_its_input(pooling):
    networks = Networks(PAPER.model_copy(update={"pooling": pooling}))
    votes = networks.votes(torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8))
    assert votes.shape == (5, 3)
    assert torch.allclose(votes.norm(dim=1), torch.ones(5))
    assert networks.attention(torch.rand(2, 3, 7, 9)).shape == (2, 63)


def test_without_normalisation_votes_are_as_long_as_they_are():
    networks = Networks(PAPER.model_copy(update={"normalise": False}))
    votes = networks.votes(torch.randint(0, 256, (5, 3, 12, 12), dtype=torch.uint8))
    assert not torch.allclose(votes.norm(dim=1), torch.ones(5))


def test_the_same_seed_makes_the_same_weights_and_leaves_torchs_own_generator_alone():
    state = torch.random.get_rng_state()
    one, other, third = Networks(PAPER, 1).weights(), Networks(PAPER, 1).weights(), Networks(PAPER, 2).weights()
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(np.array_equal(one[name], other[name]) for name in one)
    assert any(not np.array_equal(one[name], third[name]) for name in one)


def test_all_weights_are_float32_and_those_of_batch_normalisation_are_among_them():
    weights = Networks(PAPER).weights()
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert {"attention.norms.0.running_mean", "attention.norms.0.num_batches_tracked"} <= weights.keys()


def test_averaged_variances_below_zero_become_zero():
    networks = Networks(PAPER)
    weights = networks.weights()
    weights["attention.norms.1.running_var"][:] = -0.5
    networks.load(weights)
    assert not networks.attention.norms[1].running_var.any()


def test_weights_of_another_shape_are_refused_with_what_was_found_and_expected():
    two = Networks(AttentionConfig(classes=("a", "b"))).weights()
    with pytest.raises(TrainingError, match=r"classifier.affine.bias is \(2,\), \(3,\) was expected"):
        Networks(PAPER).load(two)
    less = {name: array for name, array in Networks(PAPER).weights().items() if name != "attention.last.bias"}
    with pytest.raises(TrainingError, match=r"attention.last.bias is not there"):
        Networks(PAPER).load(less)


def test_weights_that_are_not_finite_are_refused():
    weights = Networks(PAPER).weights()
    weights["attention.last.bias"][:] = np.nan
    with pytest.raises(Diverged, match=r"attention.last.bias"):
        Networks(PAPER).load(weights)


@pytest.mark.parametrize("name", ["resnet10", "efficientnet-b0"])
def test_a_network_of_monai_takes_the_feature_networks_place(name):
    config = PAPER.model_copy(update={"classifier": name, "patch": 32, "channels": 1})
    votes = Networks(config).eval().votes(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))
    assert votes.shape == (2, 3)


@pytest.mark.parametrize("name", ["Nobody", "UNet"])
def test_a_name_that_is_no_classifier_of_monai_is_refused(name):
    with pytest.raises(ConfigError, match=r"DenseNet121"):
        Networks(PAPER.model_copy(update={"classifier": name}))


def test_images_of_several_shapes_are_normalised_as_one_batch():
    network = AttentionNetwork(PAPER).double()
    small, large = torch.rand(2, 3, 5, 6, dtype=torch.float64), torch.rand(1, 3, 8, 4, dtype=torch.float64)
    seen = []
    network.norms[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    found = network.together([small, large])
    assert [one.shape for one in found] == [(2, 8, 5, 6), (1, 8, 8, 4)]
    first = [network.convolutions[0](low) for low in (small, large)]
    cells = torch.cat([one.transpose(0, 1).flatten(1) for one in first], 1)
    torch.testing.assert_close(seen[0][0, :, 0], cells)
    torch.testing.assert_close(network.norms[0].running_mean, 0.1 * cells.mean(1))
    assert int(network.norms[0].num_batches_tracked) == 1
    network.eval()
    for low, features in zip((small, large), network.together([small, large]), strict=True):
        torch.testing.assert_close(features, network.features(low))


def test_the_conditional_policy_begins_as_the_map_itself():
    features = torch.rand(2, 8, 5, 6)
    policy, drawn = ConditionalPolicy(CONDITIONAL), torch.tensor([[3, 7, 8], [29, 0, 1]])
    state = policy.step(features, drawn, torch.rand(6, 3), None)
    assert state.shape == (6, CONDITIONAL.hidden)
    added = policy.added(features, drawn, state)
    assert added.shape == (2, 3, 30)
    assert not added.any()


def test_the_conditional_policy_can_turn_to_the_neighbourhood_of_the_last_patch():
    policy = ConditionalPolicy(CONDITIONAL)
    with torch.no_grad():
        policy.near.bias[1] = 3.0
    features, drawn = torch.rand(1, 8, 5, 6), torch.tensor([[14]])
    added = policy.added(features, drawn, policy.step(features, drawn, torch.rand(1, 3), None))[0, 0]
    assert int(added.argmax()) == 14
    assert added[15] > added[17] > added[29] > 0  # (2, 3), (2, 5) and (4, 5), from (2, 2)


def test_what_the_conditional_policy_adds_is_its_equation():
    policy = ConditionalPolicy(CONDITIONAL)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(4))
    features, drawn, votes = torch.rand(2, 8, 5, 6), torch.tensor([[3, 7, 8], [29, 0, 1]]), torch.rand(6, 3)
    state = policy.step(features, drawn, votes, None)
    added = policy.added(features, drawn, state)
    y, x = torch.arange(30) // 6, torch.arange(30) % 6
    for image, of_image in enumerate(drawn.tolist()):
        phi = features[image].flatten(1)
        for place, cell in enumerate(of_image):
            row = 3 * image + place
            seen = torch.cat([phi[:, cell], votes[row], torch.tensor([cell // 6 / 5, cell % 6 / 6])])
            torch.testing.assert_close(state[row], policy.cell(seen[None])[0])
            u, c = policy.like(state[row]), policy.near(state[row])
            apart = (y - cell // 6).square() + (x - cell % 6).square()
            near = sum(c[j] * torch.exp(-apart / (2 * reach**2)) for j, reach in enumerate(REACH))
            torch.testing.assert_close(added[image, place], u @ phi + near, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"classes": ["a"]}', "classes"),
        ('{"classes": ["a", "a"]}', "each may be named once"),
        ('{"classes": ["a", "b"], "patchs": 3}', "known are"),
        ('{"classes": ["a", "b"], "prior": "mixed", "prior_share": 0.6, "explore": 0.4}', "needs a share"),
    ],
)
def test_wrong_settings_are_told_by_name(text, told):
    with pytest.raises(ConfigError, match=told):
        read_attention_config(text)


def test_the_entropys_weight_falls_linearly_and_then_stays():
    config = PAPER.model_copy(update={"entropy": 0.1, "entropy_end": 0.02, "entropy_updates": 4})
    assert [round(config.entropy_weight(n), 3) for n in (0, 2, 4, 9)] == [0.1, 0.06, 0.02, 0.02]
    assert PAPER.entropy_weight(10_000) == PAPER.entropy
