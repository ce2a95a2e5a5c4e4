"""A plan's files counted by a cluster's workers: what is asked of them, how far they are, and what comes back.

The whole is one graph: every batch of pieces a task, every few results a task that adds them, up to one sum. Only that
one comes here. A task is a function of its arguments alone, so the scheduler may have it done again wherever and
whenever a worker is lost; the last sum is checked to hold every piece once.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from threading import Event, Lock
from typing import Any
from uuid import uuid4

from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker

import cairn
from cairn import codec
from cairn.errors import CairnError, ConfigError, PlanError, Unreachable
from cairn.tally import Tally, zeros
from edge_node.fitness import CHANGED, GONE, Unfit, check_unchanged, pixel_stage
from edge_node.scale.pieces import Piece, Sum, countable_in_pieces, cut, joined, same_image, share, whole, wide
from edge_node.scale.work import Order, count_batch
from edge_node.status import Board, Problem
from edge_node.worker import File, GivenUp, Job, Wanted, begin

TOGETHER = 4  # sums that are added at once; more would wait for each other in memory
LOOK_S = 0.2  # how often to see whether to give up
INSTALL = f"install cairn-federation[scale]=={cairn.__version__} at the scheduler and at all workers"
Key = tuple[str, int]
Graph = dict[Any, Any]


def count_files(job: Job, files: Sequence[File], client: Client) -> tuple[Tally, list[Problem]]:
    """Tally a plan over given files, as `edge_node.worker.count_files` does and to the same bits.

    Raises GivenUp; PlanError for a plan that one process has to count; ConfigError when a worker cannot count, or sees
    other files; Unreachable when the scheduler is lost, or a piece has taken several workers with it.
    """
    plan, board = job.plan, job.board
    if not countable_in_pieces(plan):
        raise PlanError("label images are written, and the pixels of a private plan chosen, by one process alone")
    work, wanted, problems = begin(job, files)
    batches = cut(wanted, share(work.pixels_total, sum(client.nthreads().values()), plan.cells))
    found = ask(job, batches, client)
    whole(found, sum(map(len, batches)))
    unfit = dict(sorted(found.unfit, key=lambda one: one[0]))
    check_seen(unfit, wanted)
    problems += unfit.values()
    board.problems(plan.study, problems)
    counted = sum(one.pixels for image, one in enumerate(wanted) if image not in unfit)
    board.work(replace(work, pixels_done=counted, files_done=len(files)))  # the last pieces may not have told of it yet
    return Tally(job.fingerprint, wide(found.tables) if found.tables else zeros(pixel_stage(plan))), problems


def check_seen(unfit: Mapping[int, Problem], wanted: Sequence[Wanted]) -> None:
    """Refuse to leave images out that are here as they were: a worker sees other files. Raises ConfigError."""
    for image, problem in unfit.items():
        source = wanted[image].source
        if problem.kind in {GONE, CHANGED}:
            with suppress(Unfit):
                check_unchanged(source, wanted[image].stamp)
                raise ConfigError(
                    f"a worker does not see {source.id} as it is here; mount the same folder of images at all workers"
                )


def ask(job: Job, batches: Sequence[tuple[Piece, ...]], client: Client) -> Sum:
    """Have batches counted and added. Raises as `count_files` does."""
    if not batches:
        return Sum((), None)
    run = uuid4().hex
    order = Order(
        cairn.__version__, codec.encode_plan(job.plan), job.settings.images, job.settings.backend, f"cairn-{run}"
    )
    graph, last = graph_of(batches, order, run)
    client.subscribe_topic(order.topic, _Progress(job.board))
    future: Future = client.get(graph, last, sync=False, optimize_graph=False)
    try:
        return _result(future, job.cancelled)
    except FutureCancelledError as error:
        raise Unreachable("the scheduler was lost while it counted; nothing was kept, count the plan again") from error
    except KilledWorker as error:
        raise _killed(error, batches) from error
    except (CairnError, GivenUp):
        raise
    except Exception as error:  # what fails where something else is installed is of any class
        raise ConfigError(f"the workers could not do what they were asked ({error}); {INSTALL}") from error
    finally:
        future.cancel()
        client.unsubscribe_topic(order.topic)


def graph_of(batches: Sequence[tuple[Piece, ...]], order: Order, run: str) -> tuple[Graph, Key]:
    """Lay out the tasks: counting, joining the parts of an image, adding; returns the last one's key too."""
    told: Key = (f"order-{run}", 0)
    # What a task is given is bound to its function: Dask would look for keys in a plain argument.
    graph: Graph = {told: (partial(_same, order),)}
    for number, batch in enumerate(batches):
        graph[_count_key(run, number)] = (partial(count_batch, batch), told)
    images = [
        _tree(graph, f"image-{run}", [_count_key(run, number) for number in numbers], one_image=one_image)
        for one_image, numbers in same_image(batches)
    ]
    return graph, _tree(graph, f"add-{run}", images)


def _count_key(run: str, number: int) -> Key:
    return f"count-{run}", number


def _killed(error: KilledWorker, batches: Sequence[tuple[Piece, ...]]) -> CairnError:
    """Say what it was that ended one worker after the other."""
    name, number = error.task
    ended = f"{error.allowed_failures + 1} workers ended, one after the other,"
    if str(name).startswith("order-"):  # before anything was counted: they could not even read it
        return ConfigError(f"{ended} when they were told what to count; {INSTALL}")
    names = (
        sorted({piece.wanted.source.id for piece in batches[number]}) if str(name).startswith("count-") else ["sums"]
    )
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return Unreachable(f"{ended} with {', '.join(names[:3])}{more} at hand; give them more memory, or put it aside")


def _same(order: Order) -> Order:
    return order


def _tree(graph: Graph, name: str, keys: list[Key], *, one_image: bool = False) -> Key:
    """Add tasks to the graph that add the keys' results, a few at once, level by level; returns the last one's key."""
    while len(keys) > 1:
        made: list[Key] = []
        for first in range(0, len(keys), TOGETHER):
            group = keys[first : first + TOGETHER]
            if len(group) > 1:
                key = (name, len(graph))
                graph[key] = (partial(joined, one_image=one_image), group)
                group = [key]
            made += group
        keys = made
    return keys[0]


def _result(future: Future, cancelled: Callable[[], bool]) -> Sum:
    done = Event()
    future.add_done_callback(lambda _: done.set())
    while not cancelled():
        if done.wait(LOOK_S):
            found: Sum = future.result()
            return found
    raise GivenUp


class _Progress:
    """Tells the board of pieces that are done, each once: one that was lost is counted anew, and told again."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._done: set[int] = set()
        self._lock = Lock()

    def __call__(self, event: tuple[float, tuple[int, int]]) -> None:
        number, pixels = event[1]
        with self._lock:
            new = number not in self._done
            self._done.add(number)
        if new:
            self._board.advance(pixels)
