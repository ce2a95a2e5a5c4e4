"""Flower's two daemons, started with what their command lines cannot say; pinned to 1.41.0.

    python -m agent_trainer.rounds.daemons superlink FLAGS      FLAGS as of flower-superlink
    python -m agent_trainer.rounds.daemons supernode FLAGS      FLAGS as of flower-supernode

- They end when their standard input closes, so that no orphan holds a port after its supervisor was killed.
- SuperLink stands behind `agent_trainer.rounds.guard` and speaks TLS 1.3 alone.
- SuperNode asks for work every 3 s and looks for the reply every 0.5 s; here, more often while a run is on.
- SuperNode leaves a task behind when a run is stopped while its message is being pulled, and whoever takes that task
  waits for hours for parts that never come; here it is taken back.
- A part of a message that is not yet there is asked for again after 50 ms instead of 1 s.
"""

# ruff: noqa: PLC0415 - each daemon loads only itself, and after the constants that it reads at import are set

import gc
import math
import os
import signal
import ssl
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent_trainer.rounds.guard import Guard, token

SECRET = "--superexec-auth-secret-file"  # noqa: S105 - a flag's name
AGAIN_S = 0.05
# Middlewares that do nothing in a SuperLink without licence, accounts, event log and tracing, but cost time.
IDLE = {
    "ControlSensitiveResponseMiddleware",
    "ControlLicenseMiddleware",
    "RuntimeTracingMiddleware",
    "ControlEventLogMiddleware",
    "FleetEventLogMiddleware",
}
GRACE_S = 10.0


class Pace:
    """Stands in for the module `time` in SuperNode's loop, which sleeps 3 s without work and 0.5 s for a reply.

    Without work the sleep grows from `quick_s` by a tenth of the time since the last reply, up to `idle_s`: the next
    round comes soon after a reply, or not so soon.

    reply_s  between two looks for the app's reply
    """

    def __init__(self, quick_s: float, idle_s: float, reply_s: float) -> None:
        self._quick_s, self._idle_s, self._reply_s = quick_s, idle_s, reply_s
        self._busy_at = -math.inf

    def sleep(self, seconds: float) -> None:
        """Sleep as long as is right for what the loop waits for."""
        time.sleep(self.wait_s(seconds, time.monotonic()))

    def wait_s(self, seconds: float, now: float) -> float:
        """Say how long, of a sleep that Flower wants."""
        if seconds < 1:
            self._busy_at = now
            return self._reply_s
        return min(self._idle_s, self._quick_s + (now - self._busy_at) / 10)


def end_with_stdin() -> None:
    """End this process when its standard input closes: asked first, made to after a while."""

    def watch() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE_S)
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="stdin").start()


def superlink(flags: Sequence[str]) -> None:
    """Run flower-superlink behind the guard; blocks."""
    secret = Path(flags[flags.index(SECRET) + 1]).read_bytes()
    _again_soon()
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
    from flwr.superlink import main as app
    from flwr.superlink.cli.flower_superlink import flower_superlink
    from starlette.middleware import Middleware
    from uvicorn import config

    SqlLinkState.store_traffic = _count_nothing  # type: ignore[assignment,method-assign]  # a write a part, which nobody reads
    gc.freeze()
    gc.set_threshold(50_000, 50, 50)  # requests make much garbage but no cycles; the collector took a tenth of the time
    needed = [layer for layer in app._get_middleware() if getattr(layer.cls, "__name__", "") not in IDLE]
    made = config.create_ssl_context

    def newest(*settings: Any, **named: Any) -> ssl.SSLContext:
        context = made(*settings, **named)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        return context

    vars(config)["create_ssl_context"] = newest
    vars(app)["_get_middleware"] = lambda: [Middleware(Guard, token(secret)), *needed]
    sys.argv = ["flower-superlink", *flags]
    flower_superlink()


def _count_nothing(_: object, run_id: int, *, bytes_sent: int, bytes_recv: int) -> None:
    """Stand in for the accounting of a run's traffic."""


def supernode(flags: Sequence[str]) -> None:
    """Run flower-supernode at our pace; blocks."""
    _again_soon()
    from flwr.common.constant import SubStatus
    from flwr.supernode import start_client_internal
    from flwr.supernode.cli.flower_supernode import flower_supernode

    pace = Pace(quick_s=0.25, idle_s=3.0, reply_s=0.05)
    receive = start_client_internal._pull_and_store_message

    def receive_whole(*, state: Any, object_store: Any, **rest: Any) -> int | None:
        """Receive a message. One that could not be received whole leaves nothing that an executor could wait for."""
        run_id = receive(state=state, object_store=object_store, **rest)
        if run_id is None and state.msg_store:  # its run was stopped while its parts were pulled
            for message_id in list(state.msg_store):
                object_store.delete(message_id)
            state.delete_messages()
            for task in state.get_tasks():
                state.finish_task(task.task_id, SubStatus.FAILED, "its run was stopped")
        return run_id

    vars(start_client_internal)["_pull_and_store_message"] = receive_whole
    vars(start_client_internal)["time"] = pace  # the loop uses time.sleep alone
    sys.argv = ["flower-supernode", *flags]
    flower_supernode()


def _again_soon() -> None:
    from flwr.supercore import constant

    vars(constant)["PULL_INITIAL_BACKOFF"] = AGAIN_S  # read when flwr.supercore.inflatable is imported


if __name__ == "__main__":
    end_with_stdin()
    {"superlink": superlink, "supernode": supernode}[sys.argv[1]](sys.argv[2:])
