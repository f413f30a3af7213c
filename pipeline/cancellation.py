"""Keeps cancellation working through libraries that may lose it, and Ctrl-C quiet."""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType


@contextmanager
def cancellable() -> Iterator[None]:
    """Raise CancelledError at the end when the task was cancelled in the body and the body did not say so.

    asyncio.wait_for, on which aiomqtt and redis rest, swallows a cancellation before Python 3.12 when the
    answer comes at the same moment; the task would then run on for ever, and who waits for its end with it.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    try:
        yield
    finally:
        if task and task.cancelling() > before:
            raise asyncio.CancelledError


def without_interrupts(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Python's own way to end with an error (`sys.excepthook`), but that Ctrl-C needs no traceback."""
    if not issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
