"""The network: the paper's layers, in two and three dimensions, told its task; and the faster way back through it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from agent_trainer import winograd
from agent_trainer.config import PADDING, DqnConfig
from agent_trainer.networks import QNetwork, architecture
from agent_trainer.pooled_conv import conv_pool_relu

SMALL = DqnConfig(box=25, channels=(4, 6, 8, 8), hidden=(16, 8))
SOLID = DqnConfig(axes=3, box=12, pool=(2, 2, 2), channels=(4, 6), kernels=(5, 3), hidden=(16,))


def states_of(config: DqnConfig, batch: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (batch, *config.state_shape), np.uint8))


def plain(network: QNetwork) -> nn.Sequential:
    """The same network as a list of torch's own layers, for one task; weights are shared."""
    convolution, pool = (nn.Conv2d, nn.MaxPool2d) if network.config.axes == 2 else (nn.Conv3d, nn.MaxPool3d)
    layers: list[nn.Module] = []
    for own in network.convolutions:
        layer = convolution(own.in_channels, own.out_channels, own.kernel_size, padding=PADDING)
        layer.weight, layer.bias = own.weight, own.bias
        layers += [layer, pool(2), nn.ReLU()]
    layers += [nn.Flatten(), nn.ConstantPad1d((0, 1), 1.0)]  # the one-hot of the only task
    for own in network.hidden:
        layers += [own, nn.LeakyReLU(network.config.leak)]
    return nn.Sequential(*layers, network.last)


def test_the_papers_network_has_four_convolutions_and_four_fully_connected_layers():
    network = QNetwork(DqnConfig(), 4, 1)
    kinds = [type(module) for module in network.modules()]
    assert (kinds.count(nn.Conv2d), kinds.count(nn.Linear)) == (4, 4)
    # 4·32·25 + 32, 32·32·25 + 32, 32·64·9 + 64, 64·64·9 + 64; (256 + 1)·512 + 512, …
    convolutions, hidden = 3_232 + 25_632 + 18_496 + 36_928, 132_096 + 131_328 + 32_896 + 516
    assert sum(p.numel() for p in network.parameters()) == convolutions + hidden


@pytest.mark.parametrize("config", [DqnConfig(), SMALL, SOLID], ids=["paper", "small", "3D"])
def test_q_and_its_gradients_are_those_of_torchs_own_layers(config):
    network = QNetwork(config, config.actions, 1, seed=3)
    states, task = states_of(config, 5), torch.zeros(5, dtype=torch.int64)
    found, expected = network(states, task), plain(network)(states / 255)
    assert found.shape == (5, config.actions)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    parameters = list(network.parameters())
    for mine, torchs in zip(
        torch.autograd.grad(found, parameters, towards), torch.autograd.grad(expected, parameters, towards), strict=True
    ):
        torch.testing.assert_close(mine, torchs, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(
    ("shape", "kernel", "padding", "outputs"),
    [
        ((3, 5, 9, 9), (3, 3), 1, 6),
        ((3, 5, 8, 11), (4, 3), 0, 6),
        ((1, 3, 7, 6, 8), (3, 2, 3), 1, 6),
        ((2, 1, 4, 4), (3, 3), 2, 6),
        ((3, 4, 12, 9), (5, 5), 1, 8),  # from here on what winograd.fits says yes to
        ((2, 3, 7, 8), (5, 3), 2, 16),
        ((3, 16, 6, 5), (3, 3), 1, 24),
        ((2, 1, 5, 6), (3, 4), 0, 32),
    ],
    ids=str,
)
def test_a_pooled_convolution_and_the_way_back_through_it_are_torchs(shape, kernel, padding, outputs, threads):
    generator = torch.Generator().manual_seed(1)
    form = torch.channels_last if len(shape) == 4 else torch.channels_last_3d
    x = torch.randn(shape, generator=generator).to(memory_format=form).requires_grad_()
    weight = torch.randn((outputs, shape[1], *kernel), generator=generator).to(memory_format=form).requires_grad_()
    bias = torch.randn(outputs, generator=generator).requires_grad_()
    convolution, pool = (
        (functional.conv2d, functional.max_pool2d) if len(shape) == 4 else (functional.conv3d, functional.max_pool3d)
    )
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = conv_pool_relu(x, weight, bias, padding)
        expected = functional.relu(pool(convolution(x, weight, bias, padding=padding), 2))
        torch.testing.assert_close(found, expected, atol=5e-6, rtol=1e-5)
        towards = torch.randn(found.shape, generator=generator)
        for mine, torchs in zip(
            torch.autograd.grad(found, (x, weight, bias), towards),
            torch.autograd.grad(expected, (x, weight, bias), towards),
            strict=True,
        ):
            torch.testing.assert_close(mine, torchs, atol=1e-5, rtol=1e-4)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("axes", [2, 3])
def test_of_equal_numbers_in_a_window_the_same_one_learns_as_in_torch(axes):
    convolution, pool = (
        (functional.conv2d, functional.max_pool2d) if axes == 2 else (functional.conv3d, functional.max_pool3d)
    )
    x = torch.randint(0, 2, (2, 1, *(6,) * axes), generator=torch.Generator().manual_seed(0)).float().requires_grad_()
    weight, bias = torch.ones((1, 1, *(1,) * axes)), torch.full((1,), 0.5)  # every window holds ones or zeros, or both
    found = conv_pool_relu(x, weight, bias, 0)
    expected = functional.relu(pool(convolution(x, weight, bias), 2))
    mine, torchs = torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0]
    assert mine.count_nonzero() == found.numel()
    assert torch.equal(mine, torchs)


@pytest.mark.parametrize("shape", [(1, 1, 4, 4), (1, 1, 4, 4, 4)], ids=["2D", "3D"])
def test_what_is_not_a_number_is_not_hidden_by_the_pool_whichever_place_has_it(shape):
    for place in range(2 ** (len(shape) - 2)):
        x = torch.ones(shape)
        x[(0, 0, *np.unravel_index(place, (2,) * (len(shape) - 2)))] = torch.nan
        out = conv_pool_relu(x, torch.ones((1, 1, *(1,) * (len(shape) - 2))), torch.zeros(1), 0)
        assert out.isnan().sum() == 1
        assert out.flatten()[0].isnan()


def test_what_is_not_a_number_is_not_hidden_where_fewer_products_are_made():
    x = torch.ones((1, 1, 8, 8))
    x[0, 0, 3, 3] = torch.nan
    weight = torch.ones((8, 1, 3, 3))
    assert winograd.fits(weight, (3, 3))
    out = conv_pool_relu(x, weight, torch.zeros(8), 0)
    expected = functional.max_pool2d(functional.conv2d(x, weight), 2)
    assert out[expected.isnan()].isnan().all()
    assert not out[0, :, 2, 2].isnan().any()


def test_bytes_are_the_same_as_floats_divided_by_255():
    network = QNetwork(SMALL, 4, 1)
    states, task = states_of(SMALL, 3), torch.zeros(3, dtype=torch.int64)
    torch.testing.assert_close(network(states, task), network(states / 255, task))
    assert states.dtype == torch.uint8


def test_the_same_state_has_another_q_in_another_task():
    network = QNetwork(SMALL, 4, 3)
    states = states_of(SMALL, 1).expand(3, *SMALL.state_shape)
    q = network(states, torch.arange(3))
    assert not torch.equal(q[0], q[1])
    assert not torch.equal(q[1], q[2])


def test_a_task_that_the_network_was_not_made_for_is_refused():
    with pytest.raises(RuntimeError, match="smaller than num_classes"):
        QNetwork(SMALL, 4, 2)(states_of(SMALL, 1), torch.tensor([2]))


def test_the_same_seed_gives_the_same_weights_and_nothing_global_is_seeded():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    one, same, other = (QNetwork(SMALL, 4, 1, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_a_duelling_networks_advantages_have_the_value_as_their_mean():
    network = QNetwork(SMALL.model_copy(update={"duelling": True}), 4, 1)
    with torch.no_grad():
        for parameter in (network.value.weight, network.last.bias):
            parameter.zero_()
        network.value.bias.fill_(7.0)
    q = network(states_of(SMALL, 4), torch.zeros(4, dtype=torch.int64))
    torch.testing.assert_close(q.mean(1), torch.full((4,), 7.0))
    assert (q.std(1) > 0).all()


def test_an_architecture_is_told_from_another_by_each_thing_that_shapes_the_weights():
    changes = [
        {"box": 61},
        {"history": 3},
        {"channels": (4, 6, 8, 9)},
        {"kernels": (3, 3, 3, 3)},
        {"hidden": (16, 9)},
        {"duelling": True},
        {"leak": 0.1},
    ]
    described = {architecture(SMALL.model_copy(update=change), 4, 1) for change in ({}, *changes)}
    described |= {architecture(SMALL, 6, 1), architecture(SMALL, 4, 2)}
    assert len(described) == len(changes) + 3
    assert architecture(SMALL.model_copy(update={"gamma": 0.5}), 4, 1) in described
