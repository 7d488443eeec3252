"""Being stopped: Ctrl-C, SIGTERM (batch systems, `timeout`) and SIGHUP (a terminal that is closed) do the same.

Work that can simply end is ended by KeyboardInterrupt, so that whatever cleans up after Ctrl-C cleans up after all of
them; work that can be resumed looks whether it was asked to stop. A signal that was ignored when the process began
(SIGHUP under nohup, SIGINT in the background of a shell without job control) stays ignored.
"""

from __future__ import annotations

import _thread
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if name in signal.Signals.__members__
)
_GRACE = 5.0  # seconds in which another signal does not interrupt what the first one made to clean up
_AGAIN = 0.05  # seconds after which an interrupt that was lost comes once more


@dataclass
class _Told:
    number: int | None = None  # of the first signal
    at: float = -_GRACE  # when the last one counted, of time.monotonic
    raised: bool = False  # whether it interrupted what ran


_told = _Told()


@contextmanager
def stoppable(*, to_the_end: bool = False) -> Iterator[None]:
    """Signals raise KeyboardInterrupt, wherever the main thread is; outside the main thread nothing changes.

    A second one within five seconds changes nothing: much of what is stopped gets it twice, and what the first one
    began shall be finished. An interrupt that gets lost in a callback of C code comes again.

    Args:
        to_the_end: the process ends with the block; signals that come later are ignored.
    """
    _told.number, _told.at, _told.raised = None, -_GRACE, False
    hook = sys.unraisablehook

    def lost(what: Any) -> None:
        if _told.raised and issubclass(what.exc_type, KeyboardInterrupt):
            _repeat()
        else:
            hook(what)

    sys.unraisablehook = lost
    try:
        with _handled(_interrupt, signal.SIG_IGN if to_the_end else None):
            yield
    finally:
        sys.unraisablehook = hook


@contextmanager
def noted() -> Iterator[Callable[[], bool]]:
    """Signals interrupt nothing; the function that it gives says whether one came. For work that can be resumed."""
    came: list[int] = []

    def note(number: int, _: object) -> None:
        came.append(number)
        _told.number, _told.at = number, time.monotonic()

    with _handled(note):
        yield lambda: bool(came)


@contextmanager
def kept() -> Iterator[None]:
    """Handlers of signals are after the block what they were before it, whatever a library does to them."""
    with _handled(None):
        yield


def interrupted() -> bool:
    """Whether a signal has interrupted what runs: an error that is seen then may be what became of the interrupt."""
    return _told.raised


def exit_code() -> int:
    """What a process that was stopped ends with, as shells have it: 130 after Ctrl-C, 143 after SIGTERM."""
    return 128 + (_told.number or signal.SIGINT)


@contextmanager
def _handled(handler: Callable[[int, Any], None] | None, after: signal.Handlers | None = None) -> Iterator[None]:
    """Signals that are not ignored are handled so (None: as they are), and after it as before, or as given."""
    if threading.current_thread() is not threading.main_thread():  # Python lets no other thread do it
        yield
        return
    found = {number: signal.getsignal(number) for number in SIGNALS}
    before = {number: old for number, old in found.items() if old not in (signal.SIG_IGN, None)}  # None: C code's
    for number in before if handler else ():
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old if after is None else after)


def _interrupt(number: int, _: object) -> None:
    now = time.monotonic()
    if now - _told.at < _GRACE:
        return
    _told.at, _told.raised = now, True
    _told.number = _told.number or number
    raise KeyboardInterrupt


def _repeat() -> None:
    """Sends the signal once more, a little later: now it would be lost in the same place."""
    number = _told.number or signal.SIGINT
    _told.at = -_GRACE
    if hasattr(signal, "pthread_kill"):
        again = threading.Timer(_AGAIN, signal.pthread_kill, (threading.main_thread().ident, number))
    else:
        again = threading.Timer(_AGAIN, _thread.interrupt_main, (number,))
    again.daemon = True
    again.start()
