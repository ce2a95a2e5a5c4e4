"""Gradients reach the optimiser as they are meant, however they lie in memory."""

import pytest
import torch

from agent_trainer.attention_config import AttentionConfig
from agent_trainer.attention_networks import Networks
from agent_trainer.gradients import put_gradients


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("of_gradient", [torch.contiguous_format, torch.channels_last])
def test_the_fused_adam_moves_each_weight_by_its_own_gradient(memory, of_gradient):
    values, slopes = torch.randn(8, 4, 3, 3), torch.randn(8, 4, 3, 3)
    fused, plain = (values.clone(memory_format=memory).requires_grad_() for _ in range(2))
    put_gradients([fused], [slopes.clone(memory_format=of_gradient)])
    plain.grad = slopes.clone(memory_format=memory)
    torch.optim.Adam([fused], lr=0.1, fused=True).step()
    torch.optim.Adam([plain], lr=0.1, foreach=False).step()
    torch.testing.assert_close(fused, plain)


def test_the_patches_classifier_has_gradients_that_lie_otherwise_than_its_weights_and_follows_them_all_the_same():
    network = Networks(AttentionConfig(classes=("a", "b")), 0).classifier
    x = torch.randn(6, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    gradients = torch.autograd.grad(network(x).square().sum(), list(network.parameters()))
    before = [parameter.detach().clone() for parameter in network.parameters()]
    put_gradients(network.parameters(), gradients)
    torch.optim.Adam(network.parameters(), lr=0.01, fused=True).step()
    for was, parameter, gradient in zip(before, network.parameters(), gradients, strict=True):
        clear = gradient.abs() > 1e-3
        moved = (parameter.detach() - was)[clear]
        torch.testing.assert_close(moved.sign(), -gradient[clear].sign())
