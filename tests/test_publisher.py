"""What a worker publishes: masks that open, scores by name, and statistics that one worker at a time speaks."""

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from standins import NAMES, PALETTE, packet_of

from nodes.publisher import FramePublisher, Looks, Rendered, Rivals, StatsPublisher, render
from nodes.service import Lane
from nodes.stats import Cameras, MaskFacts
from nodes.viewer.state import Stats
from pipeline.errors import BitstreamError, TransportError
from pipeline.mask_image import unpack_mask, unpack_mask_rle
from pipeline.messages import Decoded, FrameId, Kind, Mask, Scores
from pipeline.transport import LIVE, Delivery, Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel

FRAME = FrameId(7, 1)
LOOKS = Looks(PALETTE, NAMES)


def mask_of(number: int = 3) -> Mask:
    classes = np.zeros((48, 64), np.uint8)
    classes[:12] = number
    return Mask(FRAME, 1000, bytes(4), classes)


def scores_of(*values: float) -> Scores:
    return Scores(FRAME, 1000, bytes(4), np.array(values, np.float32))


def decoded(number: int = 3) -> Decoded:
    return Decoded(mask_of(number), None)


@pytest.fixture
async def lane() -> AsyncIterator[Lane]:
    async with Lane("png") as lane:
        yield lane


async def take(messages: AsyncIterator[Message]) -> bytes:
    async with asyncio.timeout(5):
        return (await anext(messages)).payload


def test_a_mask_is_rendered_with_the_share_of_each_class() -> None:
    rendered = render(decoded(), "cam-1", Looks(PALETTE, NAMES, rle=True))
    assert isinstance(rendered, Rendered)
    assert rendered.share.tolist() == [0.75, 0, 0, 0.25, 0]
    png, rle = rendered.parts
    mask, camera = unpack_mask(png.payload)
    assert (camera, mask.id) == ("cam-1", FRAME)
    assert (unpack_mask_rle(rle.payload).classes == mask_of().classes).all()


def test_a_mask_is_rendered_with_the_shares_of_its_zones() -> None:
    top = {"top": ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5), (0.0, 0.5))}
    rendered = render(decoded(), "cam-1", LOOKS, top)
    alone = render(Decoded(None, scores_of(1, 0, 0, 0, 0)), "cam-1", LOOKS, top)
    assert isinstance(rendered, Rendered)
    assert isinstance(alone, Rendered)
    assert {name: share.tolist() for name, share in rendered.zones.items()} == {"top": [0.5, 0, 0, 0.5, 0]}
    assert alone.zones == {}


def test_scores_are_rendered_beside_a_mask_or_alone() -> None:
    scores = scores_of(0.1, 0.25, 1, 0, 0.99999)
    both = render(Decoded(mask_of(), scores), "cam-1", LOOKS)
    alone = render(Decoded(None, scores), "cam-1", LOOKS)
    assert isinstance(both, Rendered)
    assert isinstance(alone, Rendered)
    assert [part.topic for part in both.parts] == ["mask", "labels"]
    assert [part.topic for part in alone.parts] == ["labels"]
    assert both.parts[1] == alone.parts[0]
    assert not alone.share.any()
    assert [label["score"] for label in json.loads(alone.parts[0].payload)["labels"]] == [0.1, 0.25, 1.0, 0.0, 1.0]


def test_a_class_without_a_colour_is_an_error_of_this_mask_alone() -> None:
    assert isinstance(render(decoded(5), "cam-1", LOOKS), BitstreamError)


async def test_masks_are_published_and_the_compact_form_where_it_is_on(lane: Lane) -> None:
    for rle in (False, True):
        broker = MemoryBroker()
        async with MemoryChannel(broker) as channel, MemoryChannel(broker) as other:
            arriving = other.subscribe("cam-1/#")
            frames = FramePublisher(channel, lane, looks=Looks(PALETTE, NAMES, rle=rle), live=True)
            rendered = await frames.publish("cam-1", FRAME, decoded())
        topics = [message.topic async for message in arriving]
        assert topics == (["cam-1/mask", "cam-1/mask/rle"] if rle else ["cam-1/mask"])
        assert isinstance(rendered, Rendered)


class NotingChannel(MemoryChannel):
    """Keeps how each message was to travel."""

    def __init__(self, broker: MemoryBroker) -> None:
        super().__init__(broker)
        self.noted: dict[str, Delivery] = {}

    async def publish(self, topic: str, payload: bytes, delivery: Delivery = LIVE) -> None:
        self.noted[topic] = delivery
        await super().publish(topic, payload, delivery)


async def test_of_a_recording_the_broker_acknowledges_what_it_takes_and_nothing_expires(lane: Lane) -> None:
    both = Decoded(mask_of(), scores_of(0, 0, 0, 1, 0))
    async with NotingChannel(MemoryBroker()) as channel:
        frames = FramePublisher(channel, lane, looks=LOOKS, live=True)
        await frames.publish("cam-1", FRAME, both, recorded=True)
        await frames.publish("cam-2", FRAME, both)
    noted = {topic: (delivery.qos, delivery.expiry_s) for topic, delivery in channel.noted.items()}
    one, two = (1, None), (0, 2)
    assert noted == {"cam-1/mask": one, "cam-1/labels": one, "cam-2/mask": two, "cam-2/labels": two}


@pytest.mark.parametrize("live", [True, False])
async def test_who_publishes_a_recording_hears_that_the_broker_is_away(lane: Lane, live: bool) -> None:
    frames = FramePublisher(MemoryChannel(MemoryBroker()), lane, looks=LOOKS, live=live)
    assert isinstance(await frames.publish("cam-1", FRAME, decoded(), recorded=True), TransportError)


async def test_how_regions_were_coded_goes_beside_the_mask_in_each_form(lane: Lane) -> None:
    mask = replace(mask_of(), rows=1, columns=2, kinds=(Kind.WARP, None))
    async with NotingChannel(MemoryBroker()) as channel:
        frames = FramePublisher(channel, lane, looks=Looks(PALETTE, NAMES, rle=True), live=True)
        await frames.publish("cam-1", FRAME, Decoded(mask, None))
        await frames.publish("cam-2", FRAME, decoded())
    told = {topic: delivery.properties.get("regions") for topic, delivery in channel.noted.items()}
    assert told == {"cam-1/mask": "1x2 W-", "cam-1/mask/rle": "1x2 W-", "cam-2/mask": None, "cam-2/mask/rle": None}
    assert channel.noted["cam-1/mask"].properties["sequence"] == "1"


async def test_without_a_broker_a_live_mask_is_given_up(lane: Lane) -> None:
    channel = MemoryChannel(MemoryBroker())
    frames = FramePublisher(channel, lane, looks=LOOKS, live=True)
    assert isinstance(await frames.publish("cam-1", FRAME, decoded()), TransportError)


async def test_without_a_broker_a_replayed_mask_waits(lane: Lane) -> None:
    broker = MemoryBroker()
    channel = MemoryChannel(broker)
    frames = FramePublisher(channel, lane, looks=LOOKS, live=False)
    async with MemoryChannel(broker) as other:
        arriving = other.subscribe("cam-1/mask")
        publishing = asyncio.create_task(frames.publish("cam-1", FRAME, decoded()))
        await asyncio.sleep(0.05)
        assert not publishing.done()
        async with channel:
            assert unpack_mask(await take(arriving))[1] == "cam-1"
            await publishing


def said(worker: str, masks: int) -> bytes:
    return json.dumps({"worker": worker, "masks": masks, "fps": 1}).encode()


def test_of_two_workers_the_one_that_made_more_masks_speaks() -> None:
    rivals = Rivals("b")
    assert rivals.leave_it_to_us("cam-1", 1)
    rivals.hear("cam-1", said("a", 10))
    assert not rivals.leave_it_to_us("cam-1", 9)
    assert rivals.leave_it_to_us("cam-1", 11)
    assert rivals.leave_it_to_us("cam-1", 10)  # of equals the later name
    assert rivals.leave_it_to_us("cam-2", 0)


def test_a_rival_that_is_silent_is_forgotten() -> None:
    now_s = 0.0
    rivals = Rivals("b", clock=lambda: now_s)
    rivals.hear("cam-1", said("a", 10))
    now_s = 3.0
    assert rivals.leave_it_to_us("cam-1", 1)


async def test_what_strangers_say_of_cameras_that_nobody_serves_is_not_kept() -> None:
    broker = MemoryBroker()
    cameras = Cameras(["road"], deadline_ms=2000)
    cameras.of("cam-1")
    async with MemoryChannel(broker) as channel, MemoryChannel(broker) as stranger:
        publisher = StatsPublisher("w-1", channel, cameras)
        telling = asyncio.create_task(publisher.run())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for number in range(100):
            await stranger.publish(f"cam-{number}/stats", said("w-2", 5))
        await asyncio.sleep(0.02)
        telling.cancel()
    assert list(publisher._rivals._heard) == ["cam-1"]


NESTED, INFINITE = b"[" * 5000, b'{"masks": 1e999, "worker": "a"}'


@pytest.mark.parametrize("payload", [b"", b"[]", b"{}", b"\xff", b'{"worker": 1}', NESTED, INFINITE, said("b", 99)])
def test_nonsense_and_our_own_words_are_not_a_rivals(payload: bytes) -> None:
    rivals = Rivals("b")
    rivals.hear("cam-1", payload)
    assert rivals.leave_it_to_us("cam-1", 0)


async def test_statistics_are_what_the_viewer_reads() -> None:
    broker = MemoryBroker()
    cameras = Cameras(["road", "sky"], deadline_ms=2000)
    async with MemoryChannel(broker) as channel, MemoryChannel(broker) as other:
        arriving = other.subscribe("+/stats")
        served = cameras.of("cam-1")
        served.stats.take(packet_of(0, sequence=1), size_bytes=100)
        served.stats.mask(MaskFacts(12.0, np.array([0.5, 0.5])))
        telling = asyncio.create_task(StatsPublisher("w-1", channel, cameras, interval_s=0.05).run())
        payload = await take(arriving)
        telling.cancel()
    stats = Stats.model_validate_json(payload)
    assert (stats.latency_p50_ms, stats.share, stats.key_share) == (12.0, {"road": 0.5, "sky": 0.5}, 1.0)
    assert json.loads(payload)["worker"] == "w-1"


async def test_two_workers_do_not_both_speak_for_long() -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as one, MemoryChannel(broker) as two, MemoryChannel(broker) as other:
        arriving = other.subscribe("cam-1/stats")
        async with asyncio.TaskGroup() as tasks:
            telling = []
            for name, channel, masks in (("w-1", one, 2), ("w-2", two, 1)):
                cameras = Cameras(["road"], deadline_ms=2000)
                telling.append(tasks.create_task(StatsPublisher(name, channel, cameras, interval_s=0.05).run()))
                telling.append(tasks.create_task(_keep_busy(cameras, masks)))
            await asyncio.sleep(0.6)
            for task in telling:
                task.cancel()
    speakers = [json.loads(message.payload)["worker"] async for message in arriving]
    assert speakers.count("w-1") > 5
    assert "w-2" not in speakers[-5:]


async def _keep_busy(cameras: Cameras, masks: int) -> None:
    while True:
        for _ in range(masks):
            cameras.of("cam-1").stats.mask(MaskFacts(5.0, np.array([1.0])))
        await asyncio.sleep(0.01)
