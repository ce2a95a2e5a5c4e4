"""A site that counts on a GPU, here an emulated one: the same tables, whatever becomes of the card on the way."""

import numpy as np
import pytest

from cairn import codec, kernels
from cairn.plan import Plan, fingerprint
from edge_node.status import Board
from edge_node.worker import Job, count_offline

from .conftest import STAGES, write_image, write_settings


@pytest.fixture
def site(tmp_path):
    for number in range(3):
        write_image(tmp_path / "images" / f"good{number}.ome.tif", number)
    return write_settings(tmp_path)


def counted(settings, stage, functions):
    plan = Plan("tumour", 0, STAGES[stage])
    board = Board()
    tally, problems = count_offline(
        Job(plan, fingerprint(codec.encode_plan(plan)), settings, functions, board, lambda: False)
    )
    assert not problems
    return tally.tables, board.snapshot().work.pixels_done


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("launches", [2**40, 0, 1])
def test_a_site_with_a_gpu_makes_the_tally_that_the_cpu_makes_also_when_the_card_fails(emulated, site, stage, launches):
    expected, pixels = counted(site, stage, kernels.load("numpy"))
    said: list[str] = []
    emulated.launched.clear()
    with emulated.failing(launches=launches):
        found, seen = counted(site, stage, kernels.load("cupy", said.append))
    assert bool(emulated.launched) == (launches > 0)
    assert found.keys() == expected.keys()
    for name, table in expected.items():
        assert np.array_equal(found[name], table), name
    assert seen == pixels
    assert len(said) == (launches < 2**40)
