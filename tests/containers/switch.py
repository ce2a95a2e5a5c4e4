"""A switch between network namespaces whose links delay, lose, double, reorder and cut frames. Root, TAP devices.

    python -m tests.containers.switch PREFIX FOLDER hub spoke…

Makes a namespace PREFIX-NAME with the address of `address_of` for each name, and carries frames between hub and spokes;
the kernel's own TCP is at both ends. A datagram of JSON to FOLDER/switch.sock changes links: {"link": NAME of a spoke
or "*", and fields of `Link`}. On SIGTERM it prints what it did as JSON and takes the namespaces away.
"""

import fcntl
import heapq
import json
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

TUNSETIFF, TAP_WITHOUT_HEADER = 0x400454CA, 0x1002
FRAME = 65536
SEED = 7


@dataclass(frozen=True)
class Link:
    """How a spoke's link is, both ways.

    delay_ms, jitter_ms  a frame takes delay ± jitter, evenly; one with less overtakes those before it
    loss, double         share of frames
    mbit                 megabits a second, each way; 0: no limit
    down                 nothing passes, and nobody is told
    """

    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss: float = 0.0
    double: float = 0.0
    mbit: float = 0.0
    down: bool = False


def namespace(prefix: str, name: str) -> str:
    """Name the namespace of hub or spoke."""
    return f"{prefix}-{name}"


def address_of(number: int) -> str:
    """Return the address of the hub, 0, or of a spoke."""
    return f"10.77.0.{number + 1}"


class Switch:
    """Carries frames until told to end."""

    def __init__(self, prefix: str, folder: Path, names: list[str]) -> None:
        self._prefix, self._names, self._rng = prefix, names, random.Random(SEED)
        self._links = dict.fromkeys(names[1:], Link())
        self._taps: dict[str, int] = {}
        self._at: dict[bytes, str] = {}  # hardware address → who has it
        self._free: dict[tuple[str, str], float] = {}  # when a direction has sent what it was given
        self._due: list[tuple[float, int, str, bytes]] = []
        self._newest: dict[tuple[str, str], float] = {}
        self.did: Counter[str] = Counter()
        self._told = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        for number, name in enumerate(names):
            self._taps[name] = self._plug(name, number)
        self._told.bind(str(folder / "switch.sock"))

    def _plug(self, name: str, number: int) -> int:
        """Make a namespace with a TAP device in it; returns the device's other end."""
        space, device = namespace(self._prefix, name), f"{self._prefix[-9:]}-{number}"
        _ip("netns", "add", space)
        tap = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", device.encode(), TAP_WITHOUT_HEADER))
        _ip("link", "set", device, "netns", space)
        for words in (f"addr add {address_of(number)}/24 dev {device}", f"link set {device} up", "link set lo up"):
            _ip("-n", space, *words.split())
        return tap

    def run(self) -> None:
        """Carry frames; ends with KeyboardInterrupt."""
        poll = select.poll()
        by_number = {tap: name for name, tap in self._taps.items()}
        for number in (*by_number, self._told.fileno()):
            poll.register(number, select.POLLIN)
        while True:
            wait = max(0.0, self._due[0][0] - time.monotonic()) * 1000 if self._due else None
            for number, _ in poll.poll(wait):
                if number in by_number:
                    self._take(by_number[number])
                else:
                    self._change(json.loads(self._told.recv(FRAME)))
            while self._due and self._due[0][0] <= time.monotonic():
                _, _, to, frame = heapq.heappop(self._due)
                with suppress(OSError):  # an end that is full loses it, as a card does
                    os.write(self._taps[to], frame)

    def close(self) -> None:
        """Take the namespaces away."""
        for name in self._names:
            _ip("netns", "del", namespace(self._prefix, name))

    def _change(self, said: dict[str, object]) -> None:
        name = said.pop("link")
        for spoke in self._links if name == "*" else [str(name)]:
            self._links[spoke] = replace(self._links[spoke], **said)  # type: ignore[arg-type]

    def _take(self, origin: str) -> None:
        for _ in range(64):
            try:
                frame = os.read(self._taps[origin], FRAME)
            except BlockingIOError:
                return
            self._at[frame[6:12]] = origin
            hub = self._names[0]
            known = self._at.get(frame[:6])
            targets = [hub] if origin != hub else [known] if known else list(self._links)
            for to in targets:
                self._send(origin, to, frame)

    def _send(self, origin: str, to: str, frame: bytes) -> None:
        link, way, now = self._links[to if origin == self._names[0] else origin], (origin, to), time.monotonic()
        if link.down or self._rng.random() < link.loss:
            self.did["kept by a cut" if link.down else "lost"] += 1
            return
        twice = self._rng.random() < link.double
        self.did["doubled"] += twice
        for _ in range(1 + twice):
            left = now
            if link.mbit:
                left = max(now, self._free.get(way, 0.0)) + len(frame) * 8 / (link.mbit * 1e6)
                self._free[way] = left
            due = left + max(0.0, link.delay_ms + self._rng.uniform(-1, 1) * link.jitter_ms) / 1000
            self.did["overtaking"] += due < self._newest.get(way, 0.0)
            self._newest[way] = max(due, self._newest.get(way, 0.0))
            self.did["carried"] += 1
            heapq.heappush(self._due, (due, self.did["carried"], to, frame))


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


def end(_: int, __: FrameType | None) -> None:
    """End the loop."""
    raise KeyboardInterrupt


def main(prefix: str, folder: str, *names: str) -> None:
    """Make the switch and carry until SIGTERM."""
    switch = Switch(prefix, Path(folder), list(names))
    signal.signal(signal.SIGTERM, end)
    try:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            switch.run()
        sys.stdout.write(json.dumps(dict(switch.did)) + "\n")
    finally:
        switch.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
