"""A line that fails: a TCP proxy on the loopback that cuts connections, falls silent, and turns bits over."""

import random
import select
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["cut", "corrupt", "silent"]
CHUNK = 16384
LOOK_S = 0.1


@dataclass(frozen=True)
class Fault:
    """What happens to a connection when it has carried so many bytes, both ways together.

    cut: it is reset at both ends · corrupt: one bit arrives turned over · silent: nothing arrives any more, and neither
    end is told
    """

    kind: Kind
    after: int


@dataclass
class Connection:
    """One connection through the line, from a site to the aggregator.

    happened  the fault came: the connection carried bytes enough
    over      how it ended, after the fault if there was one: by one of its two ends, or by the line
    """

    fault: Fault | None
    near: socket.socket
    far: socket.socket
    carried: int = 0
    happened: bool = False
    over: Literal["", "by an end", "by the line"] = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def pump(self, source: socket.socket, sink: socket.socket, rng: random.Random) -> None:
        """Carry bytes one way until the connection is over or silent."""
        with suppress(OSError):  # reset by an end, or closed here
            while data := source.recv(rng.randint(1, CHUNK)):
                strikes = self._count(len(data))
                if self.happened and self.fault is not None and self.fault.kind != "corrupt":
                    if self.fault.kind == "cut":
                        self.end("by the line")
                    return
                sink.sendall(_turned(data, rng) if strikes else data)
        self.end("by an end")

    def end(self, how: Literal["by an end", "by the line"]) -> None:
        """Reset both ends, as a router does that has forgotten the connection."""
        with self.lock:
            if self.over:
                return
            self.over = how
            for side in (self.near, self.far):
                side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                with suppress(OSError):
                    side.shutdown(socket.SHUT_RDWR)  # wakes the other pump, which a close alone does not
                side.close()

    def _count(self, size: int) -> bool:
        """Count bytes; tell whether the fault happens to these."""
        with self.lock:
            self.carried += size
            strikes = self.fault is not None and not self.happened and self.carried > self.fault.after
            self.happened = self.happened or strikes
            return strikes

    def wait_in_silence(self) -> None:
        """Wait until an end gives a silent connection up."""
        ends = select.poll()
        with self.lock:
            if self.over:
                return
            for side in (self.near, self.far):
                ends.register(side, select.POLLRDHUP)
        while not self.over:
            if ends.poll(LOOK_S * 1000):
                self.end("by an end")


def _turned(data: bytes, rng: random.Random) -> bytes:
    """Turn one bit over."""
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


class FailingLine:
    """A port that leads to another one; every new connection takes its fault from a list, behind its end all is well.

    port  where it listens
    """

    def __init__(self, target: int, faults: Iterable[Fault], seed: int) -> None:
        self.connections: list[Connection] = []
        self._target = target
        self._faults: Iterator[Fault] = iter(faults)
        self._rng = random.Random(seed)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self._open, self._broken = True, False
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def struck(self, kind: Kind) -> list[Connection]:
        """List the connections to which a fault of a kind has happened."""
        return [c for c in self.connections if c.happened and c.fault is not None and c.fault.kind == kind]

    def pause(self) -> None:
        """Break every connection, and every new one, until `go_on`."""
        self._broken = True
        for connection in list(self.connections):
            connection.end("by the line")

    def go_on(self) -> None:
        """Take connections again."""
        self._broken = False

    def close(self) -> None:
        """Break every connection for good."""
        self._open = False
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self.pause()

    def _accept(self) -> None:
        while self._open:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            if self._broken:
                near.close()
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:
                near.close()
                continue
            connection = Connection(next(self._faults, None), near, far)
            self.connections.append(connection)
            threading.Thread(target=self._serve, args=(connection, self._rng.random()), daemon=True).start()

    def _serve(self, connection: Connection, seed: float) -> None:
        back = threading.Thread(
            target=connection.pump, args=(connection.far, connection.near, random.Random(seed)), daemon=True
        )
        back.start()
        connection.pump(connection.near, connection.far, random.Random(seed + 1))
        if connection.fault is not None and connection.fault.kind == "silent":
            connection.wait_in_silence()
        back.join()
