"""What a camera's channel does with what cannot leave at once, or at all: it is sent later, or counted and told."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from channels import LIMIT_S, quiet, take
from peers import Site, drops, serving
from structlog.testing import capture_logs

from pipeline.errors import TransportError
from pipeline.transport import LIVE, STATE, Delivery, Message
from pipeline.transport.webrtc_messages import MESSAGE_BYTES


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


async def test_retained_messages_behind_a_long_packet_leave_when_it_has_over_the_same_connection(site: Site) -> None:
    heard = site.server.subscribe("+/state", "bundle/+")
    bundle = f"bundle/{'5e' * 32}"
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        session, peer = site.server._sessions["street"], camera._peer
        await camera.publish("street/latent", bytes(900_000))
        for topic, payload in (("street/state", b"older"), (bundle, b"{}"), ("street/state", b"newest")):
            await camera.publish(topic, payload, STATE)
        assert await take(heard, 2) == [Message("street/state", b"newest"), Message(bundle, b"{}")]
        assert await quiet(heard)
        assert (site.server._sessions["street"], camera._peer) == (session, peer)


async def test_more_that_is_retained_than_may_wait_at_once_does_not_keep_the_camera_out(site: Site) -> None:
    topics = [f"bundle/{number:08x}" for number in range(8)]
    manifests = site.server.subscribe("bundle/+")
    camera = site.channel()
    for topic in topics:
        await camera.publish(topic, bytes(60_000), STATE)
    async with camera:
        await camera.wait_connected(LIMIT_S)
        peer = camera._peer
        assert [message.topic for message in await take(manifests, 8)] == topics
        assert camera._peer is peer


@pytest.mark.parametrize(
    ("topic", "delivery", "advice"),
    [
        ("street/preview", LIVE, "preview.max_width or preview.jpeg_quality"),
        ("street/state", STATE, "too long for WebRTC"),
    ],
)
async def test_message_that_is_too_long_is_counted_each_time_and_told_once(
    site: Site, topic: str, delivery: Delivery, advice: str
) -> None:
    before = drops("size", node="transport")
    with capture_logs() as lines:
        async with site.channel() as camera:
            for wait_s in (0.0, LIMIT_S, LIMIT_S):
                if wait_s:
                    await camera.wait_connected(wait_s)
                with pytest.raises(TransportError, match="at most 65536"):
                    await camera.publish(topic, bytes(MESSAGE_BYTES), delivery)
                await asyncio.sleep(0)
    assert drops("size", node="transport") == before + 3
    (told,) = [line for line in lines if line["log_level"] == "warning"]
    assert advice in told["event"]
    size = 4 + len(topic) + MESSAGE_BYTES
    assert (told["topic"], told["bytes"], told["limit_bytes"]) == (topic, size, MESSAGE_BYTES)
