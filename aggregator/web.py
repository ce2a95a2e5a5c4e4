"""The one HTTP port, for the dashboard's application: listened on at once, served by uvicorn in a thread."""

import socket
import threading

import uvicorn
from starlette.types import ASGIApp

from cairn.errors import ConfigError

STOP_S = 5.0


class Web:
    """Listens from the beginning, answers from `start` to `stop`. Raises ConfigError when the port is taken.

    listen  host and port, 0 for any free one; `port` is the one taken
    """

    def __init__(self, app: ASGIApp, listen: tuple[str, int]) -> None:
        self._socket = _listen(*listen)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=2,
            timeout_keep_alive=30,
            limit_concurrency=200,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, name="web", daemon=True
        )

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """End open answers and release the port."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(STOP_S)
        self._socket.close()


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"the dashboard cannot listen on {host}, port {port}: {error.strerror}") from error
