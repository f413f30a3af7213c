"""A cancellation gets through, whatever the body makes of it."""

import asyncio
import subprocess
import sys
from contextlib import suppress

import pytest

from pipeline.cancellation import cancellable


async def swallow() -> None:
    with suppress(asyncio.CancelledError):
        await asyncio.sleep(60)


async def test_swallowed_cancellation_is_raised_again() -> None:
    async def work() -> None:
        with cancellable():
            await swallow()

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_swallowed_cancellation_comes_before_the_error_of_the_body() -> None:
    async def work() -> None:
        with cancellable():
            await swallow()
            raise ValueError

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_cancellation_of_before_does_not_disturb_what_ends_a_task() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            with cancellable():
                await asyncio.sleep(0)
            ended.append("in order")

    working = asyncio.create_task(work())
    await asyncio.sleep(0)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert ended == ["in order"]


async def test_timeouts_inside_and_outside_stay_timeouts() -> None:
    with pytest.raises(TimeoutError), cancellable():
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            with cancellable():
                await swallow()


async def test_without_cancellation_nothing_changes() -> None:
    with cancellable():
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="mine"), cancellable():
        raise ValueError("mine")


@pytest.mark.parametrize(("error", "told"), [("KeyboardInterrupt", False), ("ValueError", True)])
def test_an_interrupt_has_no_traceback_and_all_else_has(error: str, told: bool) -> None:
    program = f"import sys\nfrom pipeline.cancellation import *\nsys.excepthook = without_interrupts\nraise {error}"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0
    assert ("Traceback" in ended.stderr) is told
