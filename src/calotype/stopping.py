"""Being stopped: Ctrl-C, SIGTERM (batch systems, `timeout`) and SIGHUP (a terminal that is closed) do the same.

Work that can simply end is ended by KeyboardInterrupt, so that whatever cleans up after Ctrl-C cleans up after all of
them; work that can be resumed looks whether it was asked to stop. A signal that was ignored when the process began
(SIGHUP under nohup, SIGINT in the background of a shell without job control) stays ignored.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

SIGNALS = tuple(
    signal.Signals[name] for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if name in signal.Signals.__members__
)
_GRACE = 5.0  # seconds in which another signal does not interrupt what the first one made to clean up
_AGAIN = 0.05  # seconds after which a signal comes once more where an interrupt was lost, or would be
_IMPORT = 60.0  # seconds that an import may take


@dataclass
class _Told:
    number: int | None = None  # of the first signal
    at: float = -_GRACE  # when the last one counted, of time.monotonic
    raised: bool = False  # whether it interrupted what ran
    since: float | None = None  # when it began to wait for the end of an import


_told = _Told()


@contextmanager
def stoppable(*, to_the_end: bool = False) -> Iterator[None]:
    """Signals raise KeyboardInterrupt, wherever the main thread is; outside the main thread nothing changes.

    A second one within five seconds changes nothing: much of what is stopped gets it twice, and what the first one
    began shall be finished. C code may lose an interrupt: where it does, in callbacks and when objects end, the signal
    comes again, and while modules are imported, which C code does too, it waits.

    Args:
        to_the_end: the process ends with the block; signals that come later are ignored.
    """
    if signal.getsignal(signal.SIGTERM) is _interrupt:  # within another such block
        yield
        return
    _told.number, _told.at, _told.raised, _told.since = None, -_GRACE, False, None
    hook = sys.unraisablehook

    def lost(what: Any) -> None:
        if _told.raised and issubclass(what.exc_type, KeyboardInterrupt):
            _told.at = -_GRACE
            _repeat()
        else:
            hook(what)

    sys.unraisablehook = lost
    try:
        with _handled(_interrupt, signal.SIG_IGN if to_the_end else None), _alarm():
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
def held() -> Iterator[None]:
    """Signals come after the block, where the system can hold them back: for what an interrupt would leave broken.

    Only as long as there is one thread: another would take them, and the interrupt comes here all the same.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


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


def _interrupt(number: int, frame: FrameType | None) -> None:
    now = time.monotonic()
    if now - _told.at < _GRACE:
        return
    _told.number = _told.number or number
    if _imports(frame):
        _told.since = _told.since or now
        if now - _told.since < _IMPORT and _repeat():
            return
    _told.at, _told.raised = now, True
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether the code that is interrupted imports a module."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


@contextmanager
def _alarm() -> Iterator[None]:
    """The system's alarm clock is for signals that are to come again."""
    if not hasattr(signal, "SIGALRM") or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(_told.number or signal.SIGINT))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _repeat() -> bool:
    """Sends the signal once more, a little later; not from a thread, whose locks the main one may hold just now."""
    if not hasattr(signal, "setitimer"):
        return False
    signal.setitimer(signal.ITIMER_REAL, _AGAIN)
    return True
