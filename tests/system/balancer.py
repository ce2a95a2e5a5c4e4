"""A small balancer of TCP connections, as HAProxy in its mode `tcp` is one: TLS passes through it.

Every connection goes to the next backend in turn that takes it; one that refuses is left out.
"""

import itertools
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress

Address = tuple[str, int]
CHUNK = 1 << 16


class Balancer:
    """Listens on a free port of the loopback from the beginning, until `stop`.

    backends  asked for at every connection
    """

    def __init__(self, backends: Callable[[], Sequence[Address]]) -> None:
        self._backends = backends
        self._turn = itertools.count()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.taken: list[Address] = []  # the backend of each connection so far
        threading.Thread(target=self._accept, name=f"balancer {self.port}", daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        backend = self._connected()
        if backend is None:
            client.close()
            return
        for source, target in ((client, backend), (backend, client)):
            threading.Thread(target=_forward, args=(source, target), daemon=True).start()

    def _connected(self) -> socket.socket | None:
        backends = list(self._backends())
        first = next(self._turn)
        for number in range(len(backends)):
            address = backends[(first + number) % len(backends)]
            with suppress(OSError):
                found = socket.create_connection(address, timeout=5)
                found.settimeout(None)
                self.taken.append(address)
                return found
        return None


def _forward(source: socket.socket, target: socket.socket) -> None:
    """Send on what comes; when one side ends, so does the other, as behind a process that was killed."""
    with suppress(OSError):
        while data := source.recv(CHUNK):
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
        end.close()
