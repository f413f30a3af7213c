"""What the queue in memory adds to what every work queue promises (`test_work_queue`)."""

from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.messages import FrameId
from pipeline.work_queue import Place


async def test_memory_queue_reclaims_and_expires_by_the_given_clock() -> None:
    now = 0.0
    state = MemoryQueueState(clock=lambda: now)
    async with MemoryWorkQueue(state, "w2") as other:
        async with MemoryWorkQueue(state, "w1") as lost:
            await other.put("cam-1", b"x")
            await other.store_keys("cam-1", {0: b"key"})
            now = 0.2
            assert len(await lost.claim(batch=1, wait_s=0)) == 1
        now = 0.7
        assert await other.claim(batch=1, wait_s=0) == []
        now = 0.8
        assert [job.deliveries for job in await other.claim(batch=1, wait_s=0)] == [2]
        now = 59.9
        assert await other.fetch_keys("cam-1", [0]) == {0: (b"key",)}
        now = 60.0
        assert await other.fetch_keys("cam-1", [0]) == {}


async def test_memory_queue_forgets_cameras_and_recordings_that_nobody_speaks_of() -> None:
    now = 0.0
    state = MemoryQueueState(clock=lambda: now)
    queue = MemoryWorkQueue(state, "w")

    async def send(camera: str, *, recorded: bool = False) -> None:
        await queue.put(camera, b"x")
        (job,) = await queue.claim(batch=1, wait_s=0)
        place = Place(job, FrameId(7, int(now)))
        if recorded:
            await queue.published([place])
        else:
            await queue.take_turns([place])
            await queue.done([job])
        await queue.store_keys(camera, {0: b"key"})

    await send("recording", recorded=True)
    for number in range(100):
        await send(f"cam-{number}")
    now = 59.0
    await send("cam-1")
    now = 60.0
    await send("new")
    await queue.put("new", b"x")
    assert set(state.keys) == {("cam-1", 0), ("new", 0)}
    assert set(state.orders) == {"recording", "cam-1", "new"}
    now = 3600.0
    await queue.put("new", b"x")
    assert not state.keys and not state.orders
