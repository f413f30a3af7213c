"""How far a command is: a bar on a terminal, a line now and then elsewhere; on stderr, where no output is."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

_LINE_EVERY_S = 5.0

T = TypeVar("T")


def progress(items: Iterable[T], what: str) -> Iterable[T]:
    """Pass items on; shows how many there were."""
    with counting(what, None) as count:
        for number, item in enumerate(items, start=1):
            count(number)
            yield item


@contextmanager
def counting(what: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """Gives the function that is told how much is done."""
    console = Console(stderr=True)
    if console.is_terminal:
        with Progress(console=console, transient=True) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)
        return
    said_s = time.monotonic()

    def say(done: int) -> None:
        nonlocal said_s
        if time.monotonic() - said_s >= _LINE_EVERY_S:
            said_s = time.monotonic()
            sys.stderr.write(f"{what}: {done}" + (f" of {total}\n" if total else "\n"))

    yield say
