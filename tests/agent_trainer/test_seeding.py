"""What torch draws when several threads seed it."""

import threading

import pytest
import torch

from agent_trainer.apga_config import ApgaConfig
from agent_trainer.apga_networks import networks
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_networks import Networks
from agent_trainer.seeding import seeded


def test_the_generator_is_put_back_as_it_was_also_when_seeded_again_inside() -> None:
    before = torch.get_rng_state()
    with seeded(3):
        first = torch.rand(2)
        with seeded(3):
            assert torch.equal(torch.rand(2), first)
        after = torch.rand(2)
    assert torch.equal(torch.get_rng_state(), before)
    with seeded(3):
        assert torch.equal(torch.rand(4), torch.cat([first, after]))


@pytest.mark.parametrize("kind", ["apga", "attention"])
def test_first_weights_are_those_of_the_seed_whatever_another_thread_builds(kind: str) -> None:
    def build(seed: int) -> torch.Tensor:
        if kind == "apga":
            config = ApgaConfig(classes=("a", "b"), side=16, classifier="small", masker="small")
            held = networks(config, seed).state_dict()
        else:
            held = Networks(AttentionConfig(classes=("a", "b")), seed).state_dict()
        return torch.cat([tensor.flatten().double() for tensor in held.values()])

    alone = {seed: build(seed) for seed in range(4)}
    before = torch.get_rng_state()
    wrong: list[int] = []
    begin = threading.Barrier(4)

    def again(seed: int) -> None:
        begin.wait(timeout=10)
        wrong.extend(seed for _ in range(8) if not torch.equal(build(seed), alone[seed]))

    threads = [threading.Thread(target=again, args=(seed,)) for seed in alone]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert wrong == []
    assert torch.equal(torch.get_rng_state(), before)
