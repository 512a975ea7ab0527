"""Ctrl-C (SIGINT) that ends a command for certain: first in order, a second time at once.

Python raises KeyboardInterrupt wherever the main thread is, and loses it in a callback of C code
(`__del__`, weak references, the garbage collector: "Exception ignored in"). It handles no signal
while C code runs, such as a compilation of minutes.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT  # exit code

TWICE_S = 0.1  # within this time a second SIGINT is the first, sent on by a launcher
_AGAIN_S = 0.05  # from a lost KeyboardInterrupt to the next try
_active = False

# A forked child would count its signals in the parent's pipe.
os.register_at_fork(after_in_child=lambda: _active and signal.set_wakeup_fd(-1))


def end_on_interrupt() -> None:
    """Makes SIGINT end this process at once, in one line: while a command's imports run."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _end)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first SIGINT raises KeyboardInterrupt, again if a callback loses it; the second one ends
    the process at once with exit code `INTERRUPTED`, whatever the main thread does.

    Where SIGINT is ignored (a background job of a script), it stays so. After a KeyboardInterrupt
    the second SIGINT still counts, until the process has ended.
    """
    global _active
    main_thread = threading.current_thread() is threading.main_thread()
    if _active or not main_thread or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    _active = True
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_count, args=(reading,), name="interrupts", daemon=True).start()
    before = (
        signal.signal(signal.SIGINT, signal.default_int_handler),
        signal.signal(signal.SIGALRM, signal.default_int_handler),
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False),
        sys.unraisablehook,
    )

    def lost(unraisable: "sys.UnraisableHookArgs") -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            signal.setitimer(signal.ITIMER_REAL, _AGAIN_S)
        else:
            before[3](unraisable)

    sys.unraisablehook = lost
    try:
        yield
    except KeyboardInterrupt:
        raise
    except BaseException:
        _restore(writing, before)
        raise
    else:
        _restore(writing, before)


def _restore(writing: int, before: tuple) -> None:
    global _active
    signal.setitimer(signal.ITIMER_REAL, 0)
    for number, handler in zip((signal.SIGINT, signal.SIGALRM), before, strict=False):
        signal.signal(number, handler)
    signal.set_wakeup_fd(before[2])
    sys.unraisablehook = before[3]
    os.close(writing)  # ends the thread
    _active = False


def _count(reading: int) -> None:
    """Reads the numbers of arriving signals; ends the process at the second SIGINT."""
    first = None
    while numbers := os.read(reading, 64):
        now = time.monotonic()
        if signal.SIGINT in numbers and now - (first := first or now) >= TWICE_S:
            _end(signal.SIGINT, None)
    os.close(reading)


def _end(signum: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)
