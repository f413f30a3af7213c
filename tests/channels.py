"""What tests do with channels and queues again and again; every wait here ends."""

import asyncio
from collections.abc import AsyncIterator, Callable

from pipeline.transport import CONTROL, Channel, Message

LIMIT_S = 10.0


async def ready(channel: Channel) -> None:
    """Wait until the channel is connected and its subscriptions so far are in force."""
    await channel.wait_connected(LIMIT_S)
    probe = channel.subscribe("probe/#")
    while True:
        await channel.publish(f"probe/{id(channel)}", b"", CONTROL)
        try:
            async with asyncio.timeout(0.2):
                await anext(probe)
                return
        except TimeoutError:
            continue


async def take(messages: AsyncIterator[Message], count: int = 1) -> list[Message]:
    async with asyncio.timeout(LIMIT_S):
        return [await anext(messages) for _ in range(count)]


async def quiet(messages: AsyncIterator[Message], for_s: float = 0.2) -> bool:
    try:
        async with asyncio.timeout(for_s):
            await anext(messages)
    except TimeoutError:
        return True
    return False


async def until(holds: Callable[[], bool], limit_s: float = LIMIT_S) -> None:
    async with asyncio.timeout(limit_s):
        while not holds():  # noqa: ASYNC110 - what it looks at sends no signal
            await asyncio.sleep(0.01)
