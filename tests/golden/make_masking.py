"""Write one golden masked session: its messages, keys and masked words; a change is a new version of the protocol.

python -m tests.golden.make_masking
"""

import json
from pathlib import Path

import numpy as np

from cairn.masking.canonical import encode
from cairn.masking.keys import keystream
from cairn.masking.memory import mask_key, self_seed

from ..cairn.masking.federation import Federation

FILE = Path(__file__).parent / "masking_1.json"
CELLS = [np.arange(9, dtype=np.int64) * (n + 1) - 4 for n in range(3)]


def golden() -> dict[str, str | list[str]]:
    """Run three sites of whom the last is lost before it uploads."""
    federation = Federation(3, words=9, may_drop=340)
    total = federation.run(CELLS, {2: 2})
    return {
        "session": encode(federation.session).hex(),
        "roster": encode(federation.roster).hex(),
        "dealing of 0": encode(federation.dealings[0]).hex(),
        "circle": encode(federation.within.circle).hex(),
        "delivery to 1": encode(federation.delivery(1)).hex(),
        "survivors": encode(federation.survivors).hex(),
        "votes": encode(federation.votes).hex(),
        "reveals": [encode(reveal).hex() for reveal in federation.reveals],
        "self seeds": [self_seed(memory, federation.on).hex() for memory in federation.memories],
        "mask keys": [mask_key(memory).hex() for memory in federation.memories],
        "keystream of key 0": keystream(bytes(32), 48).hex(),
        "masked": [federation.masked[n].tobytes().hex() for n in (0, 1)],
        "total": total.tobytes().hex(),
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(golden(), indent=1) + "\n")
