"""Whether workers over Dask count a plan, whose packages are an extra."""

from collections.abc import Iterator
from contextlib import contextmanager

from cairn.errors import ConfigError
from edge_node.scale.pieces import countable_in_pieces
from edge_node.settings import Scale
from edge_node.worker import Counting, Job


@contextmanager
def chosen(job: Job, scale: Scale | None) -> Iterator[tuple[Counting | None, str | None]]:
    """Give who counts the job's plan, None where no workers do, and the address of Dask's dashboard.

    Workers are started or found here, and those started end with the block.
    Raises ConfigError, Unreachable.
    """
    if scale is None or not countable_in_pieces(job.plan):
        yield None, None
        return
    try:
        from edge_node.scale import cluster, spread  # noqa: PLC0415 - an extra
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"many workers need the package {error.name}, which is not installed; install cairn-federation[scale]"
        ) from error
    with cluster.connected(scale, job.settings) as client:
        yield lambda job, files: spread.count_files(job, files, client), client.dashboard_link
