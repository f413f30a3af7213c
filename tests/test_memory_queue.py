"""What the queue in memory adds to what every work queue promises (`test_work_queue`)."""

from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue


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
