"""Torch's own generator, seeded for a while and by one thread at a time.

PyTorch's layers take their first weights, and dropout its draws, from one generator that the whole process shares. A
site trains in one thread while another builds networks for its page: without turns each would draw from the other's
seed, and put back a state that is not what it found.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_TURN = threading.RLock()  # as shared as the generator it guards; a thread may seed again inside


@contextmanager
def seeded(seed: int, device: str | torch.device = "cpu") -> Iterator[None]:
    """Seed torch's generator, on the CPU and on a device, and put its state back at the end."""
    found = torch.device(device)
    with _TURN, torch.random.fork_rng(devices=[found] if found.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
