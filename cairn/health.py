"""Whether a service of this machine answers: quick and without packages, as a container's engine asks again and again.

`python -m cairn.health FOLDER` ends with 0 when the service whose state folder that is answers, else with 1 and a
sentence. `cairn edge health` and `cairn aggregator health` say the same to a person.
"""

import http.client
import json
import sys
from pathlib import Path
from typing import Final

from cairn.errors import Unreachable

ADDRESSES: Final = "addresses.json"  # what a service announces in its state folder while it runs
PATIENCE_S: Final = 5.0
# Which of the announced addresses is HTTP, and what to ask there.
ASKED: Final = {"dashboard": "/healthz", "page": "/healthz"}


def ask(state_dir: Path, patience_s: float = PATIENCE_S) -> str:
    """Return the address at which the service of a state folder answered. Raises Unreachable with a sentence."""
    try:
        announced = json.loads((state_dir / ADDRESSES).read_bytes())
        address, path = next((announced[name], asked) for name, asked in ASKED.items() if name in announced)
        host, _, port = str(address).rpartition(":")
        wanted = int(port)
    except (OSError, ValueError, TypeError, StopIteration) as error:
        raise Unreachable(f"no service runs with the state folder {state_dir}: it announces no address") from error
    said = ""
    for place in dict.fromkeys(("127.0.0.1", host.strip("[]"))):  # as a rule it listens here, whatever others call it
        connection = http.client.HTTPConnection(place, wanted, timeout=patience_s)
        try:
            connection.request("GET", path, headers={"Host": f"127.0.0.1:{wanted}"})
            answer = connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            said = said or f"it does not answer ({error or type(error).__name__})"
            continue
        finally:
            connection.close()
        if answer.status == http.HTTPStatus.OK:
            return f"{place}:{wanted}"
        said = f"it answers {answer.status} {answer.reason}"
    raise Unreachable(f"the service of {state_dir} is not well: {said}; see its log")


def main() -> int:
    """Ask once, for the folder of the command line."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m cairn.health FOLDER\n")
        return 2
    try:
        ask(Path(sys.argv[1]))
    except Unreachable as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
