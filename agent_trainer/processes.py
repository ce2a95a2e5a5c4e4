"""Several processes of one site that train one network: each takes a share of every batch, and gradients are added up.

The process groups of torch carry the tensors: NCCL where each process has a GPU of its own, else Gloo, over this
machine's loopback address alone. Its DistributedDataParallel is not used: it averages inside `backward`, and a step
must be looked at, and may be taken back, before the weights change.
"""

import json
import os
import queue
import select
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from cairn.errors import TrainingError

LOOPBACK: Final = "127.0.0.1"
START_S: Final = 120.0  # for all to be there: importing torch from a slow disk takes a minute
JOIN: Final = timedelta(seconds=30)  # for those that are there to find one another
READY: Final = b"ready\n"
ANSWER_S: Final = 120.0  # for one exchange
LOOK_EVERY_S: Final = 2e-4
END_S: Final = 5.0
ALONE: Final = "if this comes back, set training.processes to 1, and look at the trainer's log"


class Group:
    """Processes that exchange tensors, as one of them sees it.

    rank     this one's number; 0 is the one that learns for the site
    carrier  device on which tensors lie as they travel between two processes
    others   processes that this one started; when one ends, whoever waits for it is told
    """

    def __init__(
        self,
        store: Path,
        rank: int,
        size: int,
        device: torch.device,
        *,
        own_gpus: bool,
        others: Sequence[subprocess.Popen[bytes]] = (),
    ) -> None:
        self.rank, self.size, self._others, self._own_gpus = rank, size, others, own_gpus
        self.carrier = device if own_gpus else torch.device("cpu")
        files = dist.FileStore(str(store), size)
        files.set_timeout(JOIN)
        if own_gpus:
            os.environ["NCCL_SOCKET_IFNAME"] = "lo"  # where they meet; between GPUs tensors go their own way
            torch.cuda.set_device(device)
            self._group = dist.ProcessGroupNCCL(files, rank, size, dist.ProcessGroupNCCL.Options())
            return
        options = dist.ProcessGroupGloo._Options()
        options._devices = [dist.ProcessGroupGloo.create_device(hostname=LOOPBACK)]
        options._timeout = timedelta(seconds=ANSWER_S)
        self._group = dist.ProcessGroupGloo(files, rank, size, options)

    def add_up(self, tensor: Tensor) -> None:
        """Make a tensor the sum of all processes', in place. Raises TrainingError, as all below, when one has ended."""
        carried = tensor.to(self.carrier)
        self._wait(lambda: self._group.allreduce([carried]))
        if carried is not tensor:
            tensor.copy_(carried)

    def spread(self, tensors: Sequence[Tensor]) -> None:
        """Copy the first process's tensors over everybody's."""
        for tensor in tensors:
            carried = tensor.detach().to(self.carrier).contiguous()
            self._wait(partial(self._group.broadcast, carried, 0))
            if self.rank:
                tensor.detach().copy_(carried)

    def send(self, tensor: Tensor, to: int) -> None:
        """Send a tensor to another process."""
        carried = tensor.to(self.carrier).contiguous()
        self._wait(lambda: self._group.send([carried], to, 0))

    def receive(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Receive a tensor from the first process."""
        carried = torch.empty(tuple(shape), dtype=dtype, device=self.carrier)
        self._wait(lambda: self._group.recv([carried], 0, 0))
        return carried

    def _wait(self, begin: Callable[[], Any]) -> None:
        """Begin an exchange and wait for its end. Gloo sees itself that another process is gone; NCCL would wait on."""
        ends = time.monotonic() + ANSWER_S
        try:
            work = begin()
            while self._own_gpus and not work.is_completed():
                self._look()
                if time.monotonic() > ends:
                    raise TrainingError(f"the other processes did not answer within {ANSWER_S:.0f} s; {ALONE}")
                time.sleep(LOOK_EVERY_S)
            work.wait()
        except RuntimeError as error:
            ends = time.monotonic() + END_S
            while self._others and time.monotonic() < ends:
                self._look()
                time.sleep(0.01)
            raise TrainingError(
                f"a process of this training did not answer ({str(error).splitlines()[0][:200]}); {ALONE}"
            ) from error

    def _look(self) -> None:
        for number, process in enumerate(self._others, 2):
            if (code := process.poll()) is not None:
                how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
                raise TrainingError(
                    f"process {number} of the {self.size} of this training {how}; the next round starts it anew; "
                    f"{ALONE}"
                )

    def abort(self) -> None:
        """Give up whatever is under way."""
        with suppress(RuntimeError, AttributeError):
            self._group.abort()


class Helpers:
    """The other processes of a training, started and told what to do by the first.

    module  that is run; it calls `joined`
    told    what it is told first, with its own `seed` beside
    device  of the first process: "cpu", or "cuda", where each gets the next GPU
    folder  for the file by which they find one another
    Raises TrainingError when one does not start or join.
    """

    def __init__(self, module: str, told: Mapping[str, Any], processes: int, device: str, folder: Path) -> None:
        store = folder / f"processes-{os.getpid()}"
        store.unlink(missing_ok=True)
        count = torch.cuda.device_count() if device.startswith("cuda") else 0
        own_gpus = processes <= count
        started: list[subprocess.Popen[bytes]] = []
        for rank in range(1, processes):
            own = {
                "rank": rank, "size": processes, "store": str(store), "own_gpus": own_gpus,
                "device": f"cuda:{rank % count}" if count else device, "threads": torch.get_num_threads(),
            }  # fmt: skip
            process = subprocess.Popen(
                (sys.executable, "-m", module), stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
            )
            started.append(process)
            _say(process, {**told, **own})
        self._started = tuple(started)
        self._end = weakref.finalize(self, _end, self._started, store)
        first = torch.device("cuda", 0) if count else torch.device(device)
        ends = time.monotonic() + START_S
        try:
            for number, process in enumerate(self._started, 2):
                _wait_for_start(process, f"process {number} of the {processes}", ends)
            self.group = Group(store, 0, processes, first, own_gpus=own_gpus, others=self._started)
        except TrainingError:
            self._end()
            raise
        except RuntimeError as error:
            self._end()
            raise TrainingError(
                f"the {processes} processes of this training did not find one another ({str(error)[:200]}); {ALONE}"
            ) from error

    def tell(self, order: Mapping[str, Any]) -> None:
        """Tell all of them what is next. One that has ended is found by whoever waits for it."""
        for process in self._started:
            _say(process, order)

    def close(self) -> None:
        """End them; returns when they are gone."""
        self.group.abort()
        self._end()


def _say(process: subprocess.Popen[bytes], order: Mapping[str, Any]) -> None:
    assert process.stdin is not None
    with suppress(OSError):
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()


def _wait_for_start(process: subprocess.Popen[bytes], which: str, ends: float) -> None:
    """Wait until a helper is about to join. Raises TrainingError when it has ended, or the time is over."""
    assert process.stdout is not None
    said = b""
    with process.stdout:
        while READY not in said:
            heard = select.select([process.stdout], [], [], max(0.0, ends - time.monotonic()))[0]
            more = os.read(process.stdout.fileno(), 4096) if heard else b""
            if not more:
                raise TrainingError(f"{which} of this training did not start; {ALONE}")
            said += more


def _end(processes: Sequence[subprocess.Popen[bytes]], store: Path) -> None:
    for process in processes:
        assert process.stdin is not None
        with suppress(OSError):
            process.stdin.close()  # at which it ends
    for process in processes:
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
        process.kill()
        process.wait()
    store.unlink(missing_ok=True)


def orders() -> "queue.Queue[dict[str, Any]]":
    """Hear what the first process says, in a helper: one JSON object a line. With its words the helper ends too."""
    heard: queue.Queue[dict[str, Any]] = queue.Queue()

    def listen() -> None:
        for line in sys.stdin:
            heard.put(json.loads(line))
        os._exit(0)  # others may wait in an exchange that will never end; nothing here is to be kept

    threading.Thread(target=listen, name="orders", daemon=True).start()
    return heard


def joined(told: Mapping[str, Any]) -> Group:
    """Join the others, in a helper that is ready."""
    os.write(1, READY)
    os.dup2(2, 1)  # nobody listens any more
    torch.set_num_threads(told["threads"])
    device = torch.device(told["device"])
    return Group(Path(told["store"]), told["rank"], told["size"], device, own_gpus=told["own_gpus"])
