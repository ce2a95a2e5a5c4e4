"""By how many threads a site reads."""

import os

from cairn import kernels
from edge_node.fitness import GPU_READERS, readers_of


def test_as_many_threads_read_as_count_but_no_more_than_there_are_cores():
    numba = kernels.load("numba")
    assert readers_of(numba, 1) == 1
    assert readers_of(numba, 256) == (os.cpu_count() or 1)


def test_a_gpu_is_read_for_by_its_share_of_the_cores(emulated):
    cores = os.cpu_count() or 1
    gpu = kernels.load("cupy")
    assert readers_of(gpu, 1) == min(GPU_READERS, cores)
    with emulated.failing(launches=-1):
        assert readers_of(gpu, 1) == min(GPU_READERS, cores)
