"""Whether the SuperLink is reached from here: by its own question for health, over TLS with the federation's CA."""

import http.client
import ssl
import threading
from pathlib import Path

ANSWER_S = 10.0


def link_fault(superlink: str, ca: Path) -> str:
    """Say what keeps the site from the SuperLink, host:port; nothing when it answers."""
    host, _, port = superlink.rpartition(":")
    try:
        context = ssl.create_default_context(cafile=str(ca))
        connection = http.client.HTTPSConnection(host.strip("[]"), int(port), timeout=ANSWER_S, context=context)
        try:
            connection.request("GET", "/health")
            status = connection.getresponse().status
        finally:
            connection.close()
    except ssl.SSLError:
        return f"the machine at {superlink} does not show a certificate of this federation; ask its operator"
    except (OSError, ValueError, http.client.HTTPException) as error:
        return f"the SuperLink at {superlink} cannot be reached ({type(error).__name__}); check the firewall"
    return "" if status == http.client.OK else f"the SuperLink at {superlink} answers {status}; ask its operator"


class LinkWatch:
    """Asks now and then, in a thread of its own: a firewall that swallows packets lets nobody else wait.

    fault  what was found last
    """

    def __init__(self, superlink: str, ca: Path, every_s: float) -> None:
        self.fault = ""
        self._superlink = superlink
        self._ca = ca
        self._every_s = every_s
        self._over = threading.Event()

    def start(self) -> None:
        """Begin; the first question is asked after a while, as a SuperLink takes its time to start."""
        threading.Thread(target=self._watch, name="superlink", daemon=True).start()

    def stop(self) -> None:
        """Ask no more."""
        self._over.set()

    def _watch(self) -> None:
        while not self._over.wait(self._every_s):
            self.fault = link_fault(self._superlink, self._ca)
