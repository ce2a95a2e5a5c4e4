"""How a service is told to end: by SIGTERM or Ctrl-C, whichever of its threads the system hands the signal to."""

import os
import signal
import threading

NUMBERS = (signal.SIGTERM, signal.SIGINT)


def told_to_stop() -> threading.Event:
    """Return an event that SIGTERM and Ctrl-C set from now on; for the main thread of a process, once.

    The system may hand a process's signal to any of its threads, as it does now and then while threads are started.
    Python runs handlers in the main thread alone, and does not wake it for that out of a wait for an event: a handler
    that sets the event would never come to run. The wake-up descriptor, though, is written at once by whichever
    thread got the signal, and here a thread waits for that. Nor may a handler set the event that its own thread waits
    for: both take the event's lock. So the handlers do nothing.
    """
    stop = threading.Event()
    heard, told = os.pipe()  # open as long as the process is, as signals may come until its end
    os.set_blocking(told, False)
    signal.set_wakeup_fd(told, warn_on_full_buffer=False)
    for number in NUMBERS:
        signal.signal(number, lambda *_: None)

    def listen() -> None:
        while byte := os.read(heard, 1):
            if byte[0] in NUMBERS:
                stop.set()

    threading.Thread(target=listen, name="signals", daemon=True).start()
    return stop
