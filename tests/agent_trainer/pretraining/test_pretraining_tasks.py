"""The tasks that images set by themselves: what is shown, and that the right answer is right by construction."""

import numpy as np
import pytest
import torch

from agent_trainer.pretraining.tasks import hidden, jumbled, orders, turned, whole


def images(count: int, channels: int = 1, side: int = 24, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(count, channels, side, side)).astype(np.float32))


def test_each_image_comes_in_all_four_turns_and_turning_back_by_its_label_gives_it_again() -> None:
    x = images(3, channels=2)
    task = turned(x)
    assert task.labels is not None
    assert task.labels.tolist() == [0, 1, 2, 3] * 3
    for seen, turns, image in zip(task.seen, task.labels.tolist(), x.repeat_interleave(4, 0), strict=True):
        assert torch.equal(torch.rot90(seen, -turns, (1, 2)), image)


@pytest.mark.parametrize(("tiles", "many", "apart"), [(4, 6, 3), (9, 24, 7)])
def test_orders_begin_with_the_image_itself_and_lie_far_apart(tiles: int, many: int, apart: int) -> None:
    found = orders(tiles, many)
    assert found.shape == (many, tiles)
    assert found[0].tolist() == list(range(tiles))
    assert all(sorted(one) == list(range(tiles)) for one in found.tolist())
    distances = (found[:, None] != found).sum(2)[np.triu_indices(many, 1)]
    assert distances.min() >= apart
    assert np.array_equal(found, orders(tiles, many)), "the same at all sites"


def test_four_tiles_have_all_their_orders() -> None:
    assert len({tuple(one) for one in orders(4, 24).tolist()}) == 24


@pytest.mark.parametrize("grid", [2, 3])
def test_laying_a_jigsaw_s_tiles_back_by_its_label_gives_the_image(grid: int) -> None:
    x, choices = images(8), orders(grid**2, 10)
    task = jumbled(x, choices, grid, 0.0, np.random.default_rng(1))
    assert task.labels is not None
    assert len(set(task.labels.tolist())) > 1
    tile = 24 // grid
    for seen, label, image in zip(task.seen, task.labels.tolist(), x, strict=True):
        back = torch.empty_like(image)
        for place, number in enumerate(choices[label]):
            there = seen[:, place // grid * tile :, place % grid * tile :][:, :tile, :tile]
            back[:, number // grid * tile :, number % grid * tile :][:, :tile, :tile] = there
        assert torch.equal(back, image)


def test_between_the_tiles_of_a_jigsaw_lies_the_mean_so_that_no_edge_goes_on() -> None:
    x = images(4)
    task = jumbled(x, orders(9, 5), 3, 0.25, np.random.default_rng(0))
    for seen, image in zip(task.seen, x, strict=True):
        assert torch.equal(seen[:, ::8], image.mean().expand(1, 3, 24)), "the first row of each place"
        assert (seen == image.mean()).float().mean() == pytest.approx(1 - (6 / 8) ** 2, abs=0.01)


def test_hidden_pixels_show_the_mean_are_alike_in_all_channels_and_are_as_many_as_asked() -> None:
    x = images(200, channels=3)
    task = hidden(x, 6, 0.5, np.random.default_rng(0))
    assert task.where is not None
    assert task.wanted is x
    assert float(task.where.float().mean()) == pytest.approx(0.5, abs=0.02)
    means = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    everywhere = task.where.expand_as(x)
    assert torch.equal(task.seen[everywhere], means[everywhere])
    assert torch.equal(task.seen[~everywhere], x[~everywhere])


def test_an_image_is_neither_hidden_wholly_nor_shown_wholly() -> None:
    for share in (0.01, 0.99):
        where = hidden(images(20), 8, share, np.random.default_rng(0)).where
        assert where is not None
        shares = where.float().mean((1, 2, 3))
        assert share < 0.5 or float(shares.max()) < 1
        assert share > 0.5 or float(shares.mean()) > 0


def test_an_autoencoder_is_asked_for_the_whole_image() -> None:
    x = images(2)
    task = whole(x)
    assert task.seen is x
    assert task.wanted is x
    assert task.where is None
