"""The workers: processes of this machine, or those of a scheduler that the site runs already."""

import asyncio
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any

import dask
from distributed import Client, LocalCluster, Security
from distributed.comm import connect

import cairn
from cairn.errors import ConfigError, Unreachable
from cairn.kernels import best
from edge_node.scale.work import ready
from edge_node.settings import Scale, SiteSettings

ANSWER_S = 5.0  # a scheduler's
STARTED = {
    # One batch at a worker at a time: when it ends there, no other batch that only waited is blamed.
    "distributed.scheduler.worker-saturation": 1.0,
    # Nobody looks at Dask's profiles, which take a worker's core 100 times a second: 7 % of what it counts.
    "distributed.worker.profile.enabled": False,
    # Without Dask's own limit for malloc, which gives every tile's memory back to the system, to be zeroed by it anew.
    "distributed.nanny.pre-spawn-environ": {"OMP_NUM_THREADS": 1, "MKL_NUM_THREADS": 1, "OPENBLAS_NUM_THREADS": 1},
}
HOST = "127.0.0.1"
NO_ANSWER = "no Dask scheduler answers at {}; start one there, or name another"

# What these log of a lost worker or connection reaches the user as one sentence instead, or not at all.
for library in ("distributed", "distributed.client", "distributed.scheduler", "distributed.nanny", "distributed.core"):
    logging.getLogger(library).setLevel(logging.CRITICAL)


@contextmanager
def connected(scale: Scale, settings: SiteSettings) -> Iterator[Client]:
    """Give a client of workers of which each can count the site's images; processes made here end with the block.

    Raises Unreachable when no scheduler answers, ConfigError when a worker has another version of Cairn or no images.
    """
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(STARTED))
        at = stack.enter_context(local(scale.workers)) if scale.workers else answering(str(scale.scheduler))
        try:
            client = stack.enter_context(Client(at, timeout=ANSWER_S, set_as_default=False))
        except OSError as error:
            raise Unreachable(NO_ANSWER.format(at)) from error
        check_workers(client, settings)
        yield client


def answering(address: str) -> str:
    """Return a scheduler's address once something answers there. Raises Unreachable, ConfigError.

    A client that cannot connect would stay behind half made, and wait for itself when the program ends.
    """

    async def ask() -> None:
        comm = await connect(address, timeout=ANSWER_S, **Security().get_connection_args("client"))
        await comm.close()

    try:
        asyncio.run(ask())
    except OSError as error:
        raise Unreachable(NO_ANSWER.format(address)) from error
    except TypeError as error:
        raise ConfigError(
            f"the scheduler {address} speaks TLS; name certificates in Dask's configuration, distributed.comm.tls"
        ) from error
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"the scheduler {address} cannot be asked: {error}") from error
    return address


def local(workers: int) -> LocalCluster:
    """Start worker processes of one core each; where GPUs count and dask-cuda is installed, one for a GPU at most.

    Scheduler and workers speak TLS with certificates made for this once: on a machine with other users, whoever may
    connect to a scheduler may run programs.
    """
    made: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": 1,
        "host": HOST,
        "protocol": "tls://",
        "security": Security.temporary(),
        "dashboard_address": f"{HOST}:0",
        "preload": ["edge_node.scale.local_worker"],
        "silence_logs": logging.CRITICAL,
    }
    if best()[0] == "cupy" and find_spec("dask_cuda"):
        from dask_cuda import LocalCUDACluster  # noqa: PLC0415 - only where there are GPUs

        from cairn.kernels.cupy_ import cards  # noqa: PLC0415

        return LocalCUDACluster(**made | {"n_workers": min(workers, cards())})
    return LocalCluster(**made)


def check_workers(client: Client, settings: SiteSettings) -> None:
    """Ask every worker that there is now whether it can count; those that come later are asked by their first task.

    A worker that ends while it is asked is passed over: what it was to do, another will. Raises ConfigError.
    """
    answers = client.run(ready, cairn.__version__, str(settings.images.folder.absolute()), on_error="return")
    for address, answer in sorted(answers.items()):
        if isinstance(answer, ConfigError):
            raise ConfigError(f"the worker at {address} {answer}")
        if isinstance(answer, Exception) and not isinstance(answer, OSError):
            raise ConfigError(
                f"the worker at {address} has no Cairn that can count; install cairn-federation[scale]=="
                f"{cairn.__version__} there"
            )
