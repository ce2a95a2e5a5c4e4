"""Attention sampling at a site: what is seen of an image, what is learned of it, and what a site's data may be like."""

import copy
import csv
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from agent_trainer import saved_state
from agent_trainer.algorithms import Place
from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_draws import draw, draw_all
from agent_trainer.attention_learner import AttentionLearner
from agent_trainer.attention_networks import Networks
from agent_trainer.attention_practice import ATTENTION, covered, look, look_at, networks_of
from agent_trainer.attention_shelf import Shelf, check_size
from agent_trainer.attention_views import Change, View, draw_change, map_shape, on_map, rarity
from agent_trainer.labelled.sources import Example
from agent_trainer.patches import in_memory
from cairn.errors import ConfigError, Diverged, ImageError, TrainingError
from cairn.files import write_atomically

TINY = AttentionConfig(
    classes=("dark", "light"), channels=1, reduction=4, patch=8, patches=3, attention_filters=2, filters=4, layers=2,
    batch=2, replicas=2, round_updates=3, validation_share=0.3,
)  # fmt: skip
SAMPLINGS = ["replacement", "without", "conditional"]


def tiny(**options) -> AttentionConfig:
    return AttentionConfig.model_validate({**TINY.model_dump(), **options})


def picture(seed: int, height: int = 40, width: int = 48) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, height, width), np.uint8)


def view_of(pixels: np.ndarray, config: AttentionConfig = TINY, change: Change | None = None, prior=None) -> View:
    image = in_memory(pixels)
    low = image.reduced(*map_shape(config, image.height, image.width))
    return View(image, low, prior, change or Change())


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---- views


def test_a_patch_lies_about_its_cell_and_is_moved_inside_at_the_edge():
    view = view_of(picture(0))
    assert view.shape == (10, 12)
    corners = view.corners(np.array([0, 5 * 12 + 6, 119]), 8)
    assert corners.tolist() == [[0, 0], [18, 22], [32, 40]]


def test_a_flipped_view_shows_the_flipped_image():
    pixels = picture(1)
    flipped = view_of(pixels, change=Change(scale=(-1, 1)))
    plain = view_of(np.ascontiguousarray(pixels[:, ::-1]))
    cells = np.array([0, 30, 65, 119])
    assert np.array_equal(flipped.patches(cells, 8), plain.patches(cells, 8))
    assert torch.allclose(flipped.map_input(), plain.map_input(), atol=1e-5)


def test_a_zoomed_view_shows_a_window_of_the_image_enlarged():
    pixels = np.kron(picture(2, 10, 12), np.ones((1, 4, 4), np.uint8))  # plain squares of four pixels
    view = view_of(pixels, change=Change(scale=(0.5, 0.5), shift=(0.5, 0.5)))  # the lower right quarter
    (patch,) = view.patches(np.array([4 * 12 + 4]), 8)  # middle (0.45, 0.375) → (0.725, 0.6875) of the image
    assert view.corners(np.array([4 * 12 + 4]), 8).tolist() == [[27, 31]]
    assert patch.shape == (1, 8, 8)
    assert abs(float(patch.mean()) - float(pixels[0, 27:31, 31:35].mean())) < 25


def test_contrast_is_about_the_images_mean_and_stays_within_its_range():
    pixels = np.full((1, 40, 48), 100, np.uint8)
    pixels[:, :, 24:] = 200
    view = view_of(pixels, change=Change(contrast=2.0))
    assert set(np.unique(view.patches(np.array([0, 11]), 8))) == {50, 250}


def test_drawn_changes_keep_the_window_inside_the_image():
    rng = np.random.default_rng(0)
    config = tiny(zoom=3.0)
    for _ in range(200):
        change = draw_change(config, rng)
        assert all(abs(s) + abs(t) <= 1 + 1e-9 for s, t in zip(change.scale, change.shift, strict=True))
        assert abs(change.scale[0]) == abs(change.scale[1]) >= 1 / 3
        assert 0.8 <= change.contrast <= 1.2


def test_the_map_of_a_slide_stays_small():
    assert map_shape(TINY, 40, 48) == (10, 12)
    assert max(map_shape(TINY, 90_000, 60_000)) <= TINY.map_side


def test_rare_colours_are_drawn_as_often_as_frequent_ones():
    low = np.zeros((3, 4, 4), np.uint8)
    low[:, 2, 3] = 255
    assert rarity(low)[2, 3] == pytest.approx(0.5)
    assert rarity(low).sum() == pytest.approx(1)


def test_a_density_of_another_size_is_brought_to_the_map():
    density = np.zeros((4, 4), np.float32)
    density[:2, :2] = 3
    assert np.allclose(on_map(density, (2, 2)), [[1, 0], [0, 0]])
    assert on_map(np.zeros((4, 4), np.float32), (2, 2)) is None


# ---- draws


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_draws_tell_of_each_cell_what_it_was_drawn_by(sampling):
    config = tiny(sampling=sampling)
    views = [view_of(picture(3), config), view_of(picture(4), config)]
    drawn = draw(Networks(config), views, 2, generator())
    assert drawn.cells.shape == drawn.log_a.shape == drawn.q.shape == (2, 2, 3)
    assert drawn.patches.shape == (12, 1, 8, 8)
    assert torch.allclose(drawn.maps.sum(1), torch.ones(2))
    first = drawn.maps.gather(1, drawn.cells[..., 0])
    assert torch.allclose(drawn.log_a[..., 0].exp(), first)
    assert torch.allclose(drawn.weights(config).sum(-1), torch.ones(2, 2), atol=1e-5)
    expected = views[1].patches(drawn.cells[1, 0].numpy(), 8)
    assert np.array_equal(drawn.patches[6:9].numpy(), expected)


def test_draws_without_replacement_are_distinct():
    config = tiny(sampling="without", patches=40)
    cells = draw(Networks(config), [view_of(picture(5), config)], 4, generator()).cells
    assert all(len(set(row)) == 40 for row in cells[0].tolist())


@pytest.mark.parametrize("sampling", ["replacement", "without"])
def test_a_mixed_prior_changes_what_is_drawn_and_not_the_attention(sampling):
    prior = np.zeros((10, 12), np.float32)
    prior[3, 4] = 1
    config = tiny(sampling=sampling, prior="mixed", prior_share=0.9, patches=1)
    networks = Networks(config).eval()
    with_it = draw(networks, [view_of(picture(6), config, prior=prior)], 200, generator())
    without = draw(networks, [view_of(picture(6), config)], 1, generator())
    assert torch.equal(with_it.maps, without.maps)
    share = float((with_it.cells == 3 * 12 + 4).float().mean())
    assert 0.8 < share < 0.98
    a = with_it.log_a.exp()
    there = with_it.cells == 3 * 12 + 4
    assert torch.allclose(with_it.q[there], 0.1 * a[there] + 0.9)
    assert torch.allclose(with_it.gradient_weights(config)[there], (a / (0.1 * a + 0.9))[there])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_initial_prior_is_where_the_attention_begins(sampling):
    prior = np.full((10, 12), 1e-6, np.float32)
    prior[3, 4] = 1 - prior.sum()
    config = tiny(sampling=sampling, prior="initial")
    drawn = draw(Networks(config).eval(), [view_of(picture(6), config, prior=prior)], 1, generator())
    assert float(drawn.maps[0, 3 * 12 + 4]) > 0.9


def test_a_prior_is_flipped_with_its_image():
    prior = np.zeros((10, 12), np.float32)
    prior[0, 0] = 1
    moved = view_of(picture(7), change=Change(scale=(-1, -1)), prior=prior).prior()
    assert int(moved.argmax()) == 119


# ---- learning


def bright(label: int, seed: int, size: int = 48) -> np.ndarray:
    """Even grey but for one square, which is dark or light: the label."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(110, 140, (1, size, size), np.uint8)
    y, x = rng.integers(0, size - 8, 2)
    pixels[:, y : y + 8, x : x + 8] = 250 if label else 5
    return pixels


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_it_learns_where_to_look_and_what_is_seen_there(sampling):
    config = tiny(
        sampling=sampling, patches=4, replicas=4, batch=8, learning_rate=1e-2, contrast=0, entropy=0.005,
        attention_filters=4, filters=8, baseline="image", deviation_floor=0.05,
    )  # fmt: skip
    learner, rng = AttentionLearner(config, seed=0), np.random.default_rng(0)
    labels = np.arange(32) % 2
    images = [bright(int(label), seed) for seed, label in enumerate(labels)]
    view = view_of(bright(1, 99), config)
    square = rarity(view.low) > 1 / 120
    before = float(look_at(learner.networks, view, 0).map[square].sum())
    for _ in range(60):
        chosen = rng.choice(32, 8, replace=False)
        learner.update([view_of(images[i], config, draw_change(config, rng)) for i in chosen], labels[chosen])
    tests = [(label, bright(label, 100 + i)) for i, label in enumerate([0, 1] * 10)]
    looks = [look_at(learner.networks, view_of(pixels, config), 0) for _, pixels in tests]
    right = np.mean([found.probabilities.argmax() == label for found, (label, _) in zip(looks, tests, strict=True)])
    assert right >= 0.9
    assert float(look_at(learner.networks, view, 0).map[square].sum()) > 2 * before


def test_a_step_that_is_not_finite_is_refused_and_leaves_everything_as_it_was():
    learner = AttentionLearner(TINY, seed=0)
    views, labels = [view_of(picture(1)), view_of(picture(2))], np.array([0, 1])
    learner.update(views, labels)
    with torch.no_grad():
        learner.networks.classifier.affine.weight.fill_(float("nan"))
    before = learner.weights()
    with pytest.raises(Diverged, match="update 2 was refused"):
        learner.update(views, labels)
    after = learner.weights()
    assert all(np.array_equal(before[name], after[name], equal_nan=True) for name in before)
    assert learner.updates == 1


def test_the_attention_can_be_kept_as_it_is_while_another_classifier_learns():
    learner = AttentionLearner(tiny(train_attention=False), seed=0)
    before = learner.weights()
    learner.update([view_of(picture(1)), view_of(picture(2))], np.array([0, 1]))
    changed = {name for name, array in learner.weights().items() if not np.array_equal(array, before[name])}
    assert changed
    assert all(name.startswith("classifier.") for name in changed)


def test_the_proximal_term_holds_training_to_the_rounds_weights():
    views, labels = [view_of(picture(1)), view_of(picture(2))], np.array([0, 1])
    apart = []
    for mu in (0.0, 1000.0):
        learner = AttentionLearner(tiny(learning_rate=1e-3), seed=0)
        start = learner.weights()
        learner.load(start, mu)
        for _ in range(10):
            learner.update(views, labels)
        now = learner.weights()
        apart.append(
            sum(float(np.square(now[n] - start[n]).sum()) for n in now if "running" not in n and "num" not in n)
        )
    assert apart[1] < 0.5 * apart[0]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_restored_learner_goes_on_to_the_same_bit(tmp_path, sampling):
    config = tiny(sampling=sampling, baseline="moving")
    views, labels = [view_of(picture(1), config), view_of(picture(2, 32, 32), config)], np.array([0, 1])
    one = AttentionLearner(config, seed=0)
    one.update(views, labels)
    one.save(tmp_path / "state")
    other = AttentionLearner(config, seed=0)
    other.update(views[::-1], labels)
    other.restore(tmp_path / "state")
    assert one.update(views, labels) == other.update(views, labels)
    assert all(np.array_equal(array, other.weights()[name]) for name, array in one.weights().items())


def test_a_state_of_another_run_is_refused(tmp_path):
    AttentionLearner(TINY, seed=0).save(tmp_path / "state")
    for other in (AttentionLearner(tiny(filters=5), seed=0), AttentionLearner(tiny(entropy=0.5), seed=0),
                  AttentionLearner(TINY, seed=1)):  # fmt: skip
        with pytest.raises(TrainingError, match="is of another run"):
            other.restore(tmp_path / "state")
    with write_atomically(tmp_path / "no state") as file:
        file.write(b"nothing")
    with pytest.raises(TrainingError, match="not a learner's saved state"):
        AttentionLearner(TINY, seed=0).restore(tmp_path / "no state")


def without_generator(state, tensors):
    tensors.pop("generator")


def with_a_weight_of_another_shape(state, tensors):
    tensors["network.classifier.affine.bias"] = torch.zeros(9)


def with_a_moment_of_another_shape(state, tensors):
    tensors["exp_avg.classifier.affine.bias"] = torch.zeros(9)


def without_baseline(state, tensors):
    state.pop("baseline")


@pytest.mark.parametrize(
    "spoil",
    [without_generator, with_a_weight_of_another_shape, with_a_moment_of_another_shape, without_baseline],
    ids=lambda spoil: spoil.__name__,
)
def test_a_state_of_another_shape_is_refused_and_nothing_is_changed(tmp_path, spoil):
    views, labels = [view_of(picture(1)), view_of(picture(2))], np.array([0, 1])
    one, other = AttentionLearner(TINY, seed=0), AttentionLearner(TINY, seed=0)
    one.update(views, labels)
    one.save(tmp_path / "state")
    run = saved_state.digest(0, TINY)
    tensors, state = saved_state.read(tmp_path / "state", run)
    spoil(state, tensors)
    saved_state.write(tmp_path / "state", run, tensors, state)
    with pytest.raises(TrainingError, match="does not fit this learner"):
        other.restore(tmp_path / "state")
    assert other.updates == 0
    fresh = AttentionLearner(TINY, seed=0)
    assert other.update(views, labels) == fresh.update(views, labels)


def test_images_of_two_sizes_in_one_batch_share_the_mean_and_the_deviation_of_the_rewards():
    """Votes of (0, ln 3) whatever is seen: rewards ¼ and ¾, mean ½, deviation ¼, hence advantages -1 and 1."""
    config = tiny(normalise=False, entropy=0.0, clip_norm=1e9)
    learner = AttentionLearner(config, seed=0)
    with torch.no_grad():
        learner.networks.classifier.affine.weight.zero_()
        learner.networks.classifier.affine.bias.copy_(torch.tensor([0.0, np.log(3)]))
        learner.networks.classifier.convolutions[-1].weight.zero_()  # features of 0: the bias alone has a gradient
        learner.networks.classifier.convolutions[-1].bias.zero_()
    twin = copy.deepcopy(learner.networks).train()
    views, labels = [view_of(picture(1), config), view_of(picture(2, 32, 32), config)], np.array([0, 1])
    told = learner.update(views, labels)
    assert told.loss == pytest.approx(-(np.log(1 / 4) + np.log(3 / 4)) / 2)
    assert (told.reward, told.right) == (pytest.approx(0.5), 0.5)

    draws = generator(0)
    made = draw_all(twin, [[view] for view in views], config.replicas, draws)
    dark, light = (one.log_a.sum(-1).mean() / config.patches for one in made)
    loss = -(-1 * dark + 1 * light) / 2
    found = torch.autograd.grad(loss, list(twin.attention.parameters()))
    of_attention = sum(float(gradient.square().sum()) for gradient in found)
    of_bias = 2 * 0.25**2  # mean of (¼ - 1, ¾) and (¼, ¾ - 1)
    assert of_attention > 1e-4
    assert told.grad_norm == pytest.approx(np.sqrt(of_attention + of_bias), rel=1e-3)


# ---- the shelf


def test_what_the_attention_sees_of_images_is_bounded_and_the_least_recently_used_give_way(tmp_path):
    site(tmp_path, ["dark"] * 3)
    examples = [Example(f"p{i}.png", tmp_path / "images" / f"p{i}.png", 0, f"{i}") for i in range(3)]
    a_map = 10 * 12 * (1 + 4)  # bytes of pixels and prior
    shelf = Shelf(tiny(prior="mixed", prior_of="rarity"), room=2 * a_map)
    first, second = shelf.view(examples[0]), shelf.view(examples[1])
    assert shelf.view(examples[0]).low is first.low
    shelf.view(examples[2])
    assert shelf.view(examples[0]).low is first.low
    again = shelf.view(examples[1])
    assert again.low is not second.low
    assert np.array_equal(again.low, second.low)
    assert np.array_equal(again.density, second.density)


# ---- looking


def test_a_look_tells_where_was_looked_with_what_weight_and_what_it_cost():
    networks = Networks(TINY)
    found = look(networks, in_memory(picture(8)), seed=3)
    assert found.probabilities.sum() == pytest.approx(1)
    assert found.map.shape == (10, 12)
    assert found.map.sum() == pytest.approx(1, abs=1e-5)
    assert found.weights.sum() == pytest.approx(1, abs=1e-5)
    assert np.array_equal(found.patches, in_memory(picture(8)).patches(found.corners, 8))
    assert found.votes.sum(1) == pytest.approx(np.ones(3))
    assert found.share_read == covered(found.corners, 8) / (40 * 48)
    again = look(networks, in_memory(picture(8)), seed=3)
    assert np.array_equal(found.corners, again.corners)


def test_the_highest_places_of_the_map_can_be_looked_at_instead_of_drawn_ones():
    found = look(Networks(tiny(inference="highest")), in_memory(picture(8)))
    best = np.sort(found.map.ravel())[-3:]
    assert found.weights == pytest.approx(best[::-1] / best.sum(), rel=1e-4)


def test_pixels_in_two_patches_count_once():
    assert covered(np.array([[0, 0], [0, 4], [20, 20]]), 8) == 8 * 12 + 64
    assert covered(np.array([[3, 3], [3, 3]]), 8) == 64
    rng = np.random.default_rng(0)
    corners, seen = rng.integers(0, 30, (20, 2)), np.zeros((40, 40), bool)
    for y, x in corners:
        seen[y : y + 8, x : x + 8] = True
    assert covered(corners, 8) == seen.sum()


def test_an_image_smaller_than_a_patch_is_refused_with_both_sizes():
    with pytest.raises(ImageError, match="found 30 × 6 pixels; expected at least a patch, 8 × 8"):
        look(Networks(TINY), in_memory(picture(0, 6, 30)))


def test_an_image_of_too_few_cells_for_distinct_patches_is_refused():
    with pytest.raises(ImageError, match="a map of 4 cells; expected at least 5"):
        look(Networks(tiny(sampling="without", patches=5)), in_memory(picture(0, 8, 8)))


# ---- a site


def site(folder, labels, size=(40, 48)):
    """Write images and their labels, and return the table that a site's settings have."""
    (folder / "images").mkdir(parents=True)
    rows = [("image", "label")]
    for number, label in enumerate(labels):
        Image.fromarray(picture(number, *size)[0]).save(folder / "images" / f"p{number}.png")
        rows.append((f"p{number}.png", label))
    with (folder / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return {"kind": "files", "images": str(folder / "images"), "labels": str(folder / "labels.csv")}


def place(tmp_path, table, **more) -> Place:
    return Place({"labelled": [table], **more}, 0, "cpu", tmp_path / "run")


MIXED = ["dark", "light"] * 5


@pytest.mark.parametrize("balance", ["none", "weights", "sampler"])
def test_a_site_learns_validates_and_goes_on_after_a_restart(tmp_path, balance):
    config, where = tiny(balance=balance, validation_share=0.6), place(tmp_path, site(tmp_path, MIXED * 3))
    practice = ATTENTION.begin(config, where)
    practice.load(ATTENTION.first_weights(config, 0))
    *_, last = practice.train(3)
    assert last.numbers()["updates"] == 3
    assert {"loss", "reward", "entropy", "accuracy"} <= last.numbers().keys()
    figures = practice.validate()
    assert figures["validation/n"] == len(practice.held_out)
    assert 0 < figures["validation/read"] <= 1
    more = figures | {"validation/read": 0.5}
    together = ATTENTION.merge_validation([figures, more, figures | {"validation/read": float("nan")}])
    assert together["validation/n"] == 3 * figures["validation/n"]
    assert together["validation/read"] == pytest.approx((figures["validation/read"] + 0.5) / 2)
    practice.save()
    assert ATTENTION.begin(config, where).learner.updates == 3
    model = networks_of(config, practice.weights())
    assert look(model, in_memory(picture(0))).probabilities.shape == (2,)


def test_a_site_of_one_class_trains_and_says_so(tmp_path):
    practice = ATTENTION.begin(tiny(balance="weights"), place(tmp_path, site(tmp_path, ["dark"] * 6)))
    *_, last = practice.train(2)
    assert last.updates == 2
    assert any("of the class dark" in problem for problem in practice.problems)
    assert practice.figures()["images/light"] == 0


def test_labels_that_the_run_does_not_know_are_told_and_left_out(tmp_path):
    practice = ATTENTION.begin(TINY, place(tmp_path, site(tmp_path, [*MIXED, "plaid"])))
    assert practice.examples + len(practice.held_out) == 10
    assert any("plaid" in problem for problem in practice.problems)
    with pytest.raises(ConfigError):
        ATTENTION.begin(TINY, place(tmp_path / "none", site(tmp_path / "none", ["plaid"] * 3)))


def test_images_smaller_than_a_patch_are_told_and_a_site_of_nothing_else_is_refused(tmp_path):
    table = site(tmp_path, MIXED)
    Image.fromarray(picture(0, 6, 6)[0]).save(tmp_path / "images" / "p0.png")
    practice = ATTENTION.begin(TINY, place(tmp_path, table))
    assert practice.examples + len(practice.held_out) == 9
    assert any(problem.startswith("p0") and "8 × 8" in problem for problem in practice.problems)
    with pytest.raises(ImageError, match="no image to learn from can be used"):
        ATTENTION.begin(TINY, place(tmp_path / "small", site(tmp_path / "small", MIXED, (6, 6))))


def test_an_image_that_breaks_while_it_is_read_is_left_out_and_the_rest_goes_on(tmp_path):
    practice = ATTENTION.begin(tiny(validation_share=0.0), place(tmp_path, site(tmp_path, MIXED)))
    path = tmp_path / "images" / "p3.png"
    path.write_bytes(path.read_bytes()[:200])
    *_, last = practice.train(8)
    assert last.updates == 8
    assert practice.examples == 9
    assert any(problem.startswith("p3") for problem in practice.problems)


def test_a_run_can_begin_with_the_attention_of_another(tmp_path):
    from safetensors.numpy import save_file

    source = Networks(TINY, 7).weights()
    save_file(source, tmp_path / "model.safetensors")
    config = tiny(filters=9, attention_weights=tmp_path / "model.safetensors")
    weights = ATTENTION.first_weights(config, 0)
    assert all(np.array_equal(array, source[name]) for name, array in weights.items() if name.startswith("attention."))
    with pytest.raises(ConfigError, match="is not of this attention"):
        ATTENTION.first_weights(tiny(attention_filters=3, attention_weights=tmp_path / "model.safetensors"), 0)
    with pytest.raises(ConfigError, match="not a model that can be read"):
        ATTENTION.first_weights(tiny(attention_weights=tmp_path / "none.safetensors"), 0)


def test_a_prior_of_tissue_needs_the_sites_label_images(tmp_path):
    where = place(tmp_path, site(tmp_path, MIXED))
    with pytest.raises(ConfigError, match=r"training.scenes"):
        ATTENTION.begin(tiny(prior="mixed"), where)
    (tmp_path / "labels").mkdir()
    scenes = [{"kind": "labels", "folder": str(tmp_path / "labels")}]
    practice = ATTENTION.begin(tiny(prior="mixed"), replace(where, sources={**where.sources, "scenes": scenes}))
    *_, last = practice.train(1)  # an image without a label image is drawn from by the attention alone
    assert last.updates == 1


def test_an_image_that_makes_a_map_of_one_cell_is_refused():
    config = tiny(reduction=20, patch=8)
    with pytest.raises(ImageError, match=r"make a map of one cell, .* choose a smaller reduction"):
        check_size(config, in_memory(picture(0, 16, 16)))
