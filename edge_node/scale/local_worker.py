"""What a worker process of this machine does first; Dask calls it by its name."""

import signal


def dask_setup(_: object) -> None:
    """Leave Ctrl-C, which a terminal sends to all its processes, to the one that started the workers: it ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
