"""A plan's files counted by a cluster's workers: what is asked of them, how far they are, and what comes back.

The images are looked at first, by all workers. Then the whole count is one graph: every batch of pieces a task, every
few results a task that adds them, up to one sum. Only that one comes here. A task is a function of its arguments alone,
so the scheduler may have it done again wherever and whenever a worker is lost; the last sum is checked to hold every
piece once.
"""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
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
from cairn.images import ImageSource
from cairn.tally import Tally, zeros
from edge_node.fitness import CHANGED, GONE, Unfit, check_unchanged, pixel_stage
from edge_node.scale.pieces import SHARES, Piece, Sum, countable_in_pieces, cut, joined, same_image, share, whole, wide
from edge_node.scale.work import Order, count_batch, look_at_files
from edge_node.status import Board, Problem
from edge_node.windows import Stamp
from edge_node.worker import File, GivenUp, Job, Wanted, begin

TOGETHER = 4  # sums that are added at once; more would wait for each other in memory
LOOK_S = 0.2  # how often to see whether to give up
INSTALL = f"install cairn-federation[scale]=={cairn.__version__} at the scheduler and at all workers"
Key = tuple[str, int]
Graph = dict[Any, Any]


def count_files(job: Job, files: Sequence[File], client: Client) -> tuple[Tally, list[Problem]]:
    """Tally a plan over given files, as `edge_node.worker.count_files` does and to the same bits.

    Raises GivenUp; PlanError for a plan that one process has to count; ConfigError when a worker cannot count, or sees
    other files; Unreachable when the scheduler is lost, or a file has taken several workers with it.
    """
    plan, board = job.plan, job.board
    if not countable_in_pieces(plan):
        raise PlanError("label images are written, and the pixels of a private plan chosen, by one process alone")
    work, wanted, problems = begin(job, files, partial(survey, client=client))
    batches = cut(wanted, share(work.pixels_total, workers_of(client), plan.cells))
    found = ask(job, batches, client)
    whole(found, sum(map(len, batches)))
    unfit = dict(sorted(found.unfit, key=lambda one: one[0]))
    check_seen((problem, wanted[image].source, wanted[image].stamp) for image, problem in unfit.items())
    problems += unfit.values()
    board.problems(plan.study, problems)
    counted = sum(one.pixels for image, one in enumerate(wanted) if image not in unfit)
    board.work(replace(work, pixels_done=counted, files_done=len(files)))  # the last pieces may not have told of it yet
    return Tally(job.fingerprint, wide(found.tables) if found.tables else zeros(pixel_stage(plan))), problems


def survey(job: Job, files: Sequence[File], client: Client) -> tuple[list[Wanted], list[Problem]]:
    """Have the workers open every image once, as `edge_node.worker.survey` does. Raises as `count_files` does."""
    size = max(1, -(-len(files) // (SHARES * workers_of(client))))
    groups = [tuple(files[first : first + size]) for first in range(0, len(files), size)]
    if not groups:
        return [], []
    run = uuid4().hex
    told = order_key(run)
    looks = [(f"look-{run}", number) for number in range(len(groups))]
    graph: Graph = {told: (partial(_same, order_of(job, run)),)}
    graph |= {key: (partial(look_at_files, group), told) for key, group in zip(looks, groups, strict=True)}
    graph[last := (f"looked-{run}", 0)] = (_all, looks)

    def names(number: int) -> set[str]:
        return {frozen.file for frozen, _ in groups[number]}

    found = wait_for(graph, last, client, job.cancelled, names)
    check_seen(
        (one, source, frozen.stamp)
        for one, (frozen, source) in zip(found, files, strict=True)
        if isinstance(one, Problem) and source is not None
    )
    return [one for one in found if isinstance(one, Wanted)], [one for one in found if isinstance(one, Problem)]


def check_seen(unfit: Iterable[tuple[Problem, ImageSource, Stamp]]) -> None:
    """Refuse to leave images out that are here as they were: a worker sees other files. Raises ConfigError."""
    for problem, source, stamp in unfit:
        if problem.kind in {GONE, CHANGED}:
            with suppress(Unfit):
                check_unchanged(source, stamp)
                raise ConfigError(
                    f"a worker does not see {source.id} as it is here; mount the same folder of images at all workers"
                )


def ask(job: Job, batches: Sequence[tuple[Piece, ...]], client: Client) -> Sum:
    """Have batches counted and added. Raises as `count_files` does."""
    if not batches:
        return Sum((), None)
    run = uuid4().hex
    order = order_of(job, run)
    graph, last = graph_of(batches, order, run)

    def names(number: int) -> set[str]:
        return {piece.wanted.source.id for piece in batches[number]}

    client.subscribe_topic(order.topic, _Progress(job.board))
    try:
        found: Sum = wait_for(graph, last, client, job.cancelled, names)
    finally:
        client.unsubscribe_topic(order.topic)
    return found


def wait_for(
    graph: Graph, last: Key, client: Client, cancelled: Callable[[], bool], names: Callable[[int], set[str]]
) -> Any:
    """Have a graph worked, and return its last task's result. Raises as `count_files` does.

    names  of the images that a task has at hand, by its number
    """
    future: Future = client.get(graph, last, sync=False, optimize_graph=False)
    try:
        return _result(future, cancelled)
    except FutureCancelledError as error:
        raise Unreachable("the scheduler was lost while it counted; nothing was kept, count the plan again") from error
    except KilledWorker as error:
        raise _killed(error, names) from error
    except (CairnError, GivenUp):
        raise
    except Exception as error:  # what fails where something else is installed is of any class
        raise ConfigError(f"the workers could not do what they were asked ({error}); {INSTALL}") from error
    finally:
        future.cancel()


def workers_of(client: Client) -> int:
    """Count the batches that can be worked at once."""
    threads: dict[str, int] = client.nthreads()
    return max(1, sum(threads.values()))


def order_of(job: Job, run: str) -> Order:
    """Say what all workers are told."""
    settings = job.settings
    return Order(cairn.__version__, codec.encode_plan(job.plan), settings.images, settings.backend, f"cairn-{run}")


def order_key(run: str) -> Key:
    """Name the task that gives the order to all others."""
    return f"order-{run}", 0


def graph_of(batches: Sequence[tuple[Piece, ...]], order: Order, run: str) -> tuple[Graph, Key]:
    """Lay out the tasks: counting, joining the parts of an image, adding; returns the last one's key too."""
    told = order_key(run)
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


def _killed(error: KilledWorker, names: Callable[[int], set[str]]) -> CairnError:
    """Say what it was that ended one worker after the other."""
    task, number = error.task
    ended = f"{error.allowed_failures + 1} workers ended, one after the other,"
    if str(task).startswith("order-"):  # before anything was counted: they could not even read it
        return ConfigError(f"{ended} when they were told what to count; {INSTALL}")
    at_hand = sorted(names(number)) if str(task).startswith(("count-", "look-")) else ["sums"]
    more = f" and {len(at_hand) - 3} more" if len(at_hand) > 3 else ""
    return Unreachable(f"{ended} with {', '.join(at_hand[:3])}{more} at hand; give them more memory, or put it aside")


def _all(found: Sequence[Sequence[Any]]) -> list[Any]:
    return [one for some in found for one in some]


def _same(order: Order) -> Order:
    return order


def _tree(graph: Graph, name: str, keys: list[Key], *, one_image: bool = False) -> Key:
    """Add tasks to the graph that add the keys' results, a few at once; returns the last one's key.

    The first in the queue are added and their sum goes to its end: what is counted last is in the last addition alone.
    """
    queue = deque(keys)
    while len(queue) > 1:
        group = [queue.popleft() for _ in range(min(TOGETHER, len(queue)))]
        key = (name, len(graph))
        graph[key] = (partial(joined, one_image=one_image), group)
        queue.append(key)
    return queue[0]


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
