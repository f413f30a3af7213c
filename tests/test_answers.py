"""What a worker says of its jobs, and that a queue which is away is told once."""

from collections.abc import Sequence

import pytest
from standins import NAMES

from nodes.answers import Answers
from nodes.stats import Cameras
from pipeline.errors import TransportError
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.work_queue import Job


class GoneQueue(MemoryWorkQueue):
    """Takes no answers."""

    async def done(self, jobs: Sequence[Job]) -> None:
        raise TransportError("redis is gone")


def answers_to(queue: MemoryWorkQueue, cameras: Cameras) -> Answers:
    return Answers("w", queue=queue, cameras=cameras)


async def test_answered_and_buried_jobs_leave_the_queue() -> None:
    state = MemoryQueueState()
    async with MemoryWorkQueue(state, "w") as queue:
        answers = answers_to(queue, Cameras(NAMES, deadline_ms=2000))
        for _ in range(3):
            await queue.put("cam-1", b"x")
        first, second, third = await queue.claim(batch=3, wait_s=1)
        await answers.acknowledge([first, second])
        await answers.acknowledge([])
        await answers.bury(third, "noise")
        assert await queue.depth() == 0
    assert [(each.reason, each.worker) for each in state.dead] == [("noise", "w")]
    assert not answers.losses.total


async def test_a_queue_that_takes_no_answers_is_told_once_and_found_again(capsys: pytest.CaptureFixture[str]) -> None:
    answers = answers_to(GoneQueue(MemoryQueueState(), "w"), Cameras(NAMES, deadline_ms=2000))
    assert answers.away
    answers.found_queue()
    assert answers.away is None
    job = Job(0, "1", "cam-1", b"x", 1)
    await answers.acknowledge([job])
    await answers.bury(job, "noise")
    assert answers.away == "redis is gone"
    answers.found_queue()
    said = capsys.readouterr().out
    assert (said.count("queue away"), said.count("queue reached")) == (1, 2)


def test_a_loss_is_counted_at_the_worker_and_at_the_camera() -> None:
    cameras = Cameras(NAMES, deadline_ms=2000)
    answers = answers_to(MemoryWorkQueue(MemoryQueueState(), "w"), cameras)
    answers.lose("cam-1", "late")
    answers.lose("cam-2", "late")
    assert answers.losses.total == {"late": 2}
    assert cameras.of("cam-1").stats.drops == {"late": 1}
