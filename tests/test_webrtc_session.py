"""What a camera may say to the gateway over WebRTC, and what hostile ones cannot do."""

import asyncio
import random
import struct
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest
from channels import LIMIT_S, quiet, take, until
from peers import SWIFT, Site, drops, serving, stranger
from structlog.testing import capture_logs

from pipeline.transport import Message
from pipeline.transport.chunks import split
from pipeline.transport.webrtc_messages import Envelope, Kind, pack_message
from pipeline.transport.webrtc_peer import LATENT, MESSAGES


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


async def test_packet_from_hostile_chunks_only_whole_and_once(site: Site) -> None:
    packets, before = site.server.subscribe("#"), drops("chunk")
    packet = random.Random(1).randbytes(40_000)
    first, second, third = split(9, packet)
    other, _ = split(10, packet[:20_000])
    wrong = [b"short", bytes(20_000), struct.pack("!IHH", 1, 5, 5), struct.pack("!IHH", 1, 0, 65_535), second, first]
    async with stranger(site) as peer:
        for chunk in (third, second, other, *wrong[:5], first, *wrong[5:]):
            peer.send(LATENT, chunk)
        assert await take(packets) == [Message("street/latent", packet)]
        await until(lambda: drops("chunk") == before + len(wrong))
        assert await quiet(packets)


async def test_packets_begun_and_never_ended_are_given_up(site: Site) -> None:
    before = drops("incomplete")
    async with stranger(site) as peer:
        for sequence in range(20):
            peer.send(LATENT, split(sequence, bytes(20_000))[0])
        await until(lambda: drops("incomplete") == before + 16)
        assert site.server.has("street")


async def test_packet_that_is_longer_than_the_gateway_takes_is_counted_once_and_told_once() -> None:
    async with serving(options=replace(SWIFT, packet_bytes=65_536)) as site:
        packets, before = site.server.subscribe("+/latent"), {each: drops(each) for each in ("size", "chunk")}
        with capture_logs() as lines:
            async with stranger(site) as peer:
                sizes = [65_537, 100_000, 300_000, 65_536]
                for sequence, size in enumerate(sizes, start=1):
                    for chunk in split(sequence, bytes(size)):
                        peer.send(LATENT, chunk)
                        await until(lambda: not peer.waiting_bytes)
                assert [len(message.payload) for message in await take(packets)] == [65_536]
        assert {each: drops(each) - before[each] for each in before} == {"size": 3, "chunk": 0}
        (told,) = [line for line in lines if "too long for this gateway" in line["event"]]
        assert (told["camera"], told["limit_bytes"], told["log_level"]) == ("street", 65_536, "warning")
        assert "gateway.packet_bytes" in told["event"]


async def test_packets_of_which_nothing_came_are_missing_and_those_of_which_some_came_incomplete(site: Site) -> None:
    before = {each: drops(each) for each in ("missing", "incomplete")}
    async with stranger(site) as peer:
        packets = site.server.subscribe("+/latent")
        for sequence in (2, 3, 5, 4, 8, 9, 10, 11, 12):  # 1, 6 and 7 do not come; 4 is only late
            peer.send(LATENT, split(sequence, b"whole")[0])
        peer.send(LATENT, split(13, bytes(20_000))[1])
        for sequence in range(14, 18):
            peer.send(LATENT, split(sequence, bytes(20_000))[0])
        await take(packets, 9)
        await until(lambda: drops("incomplete") == before["incomplete"] + 1)
        assert drops("missing") == before["missing"] + 3


@pytest.mark.parametrize("label", [LATENT, MESSAGES])
async def test_text_is_dropped_and_too_much_of_it_ends_the_session(site: Site, label: str) -> None:
    before = drops("text")
    async with stranger(site) as peer:
        peer._channels[label].send("text")
        await until(lambda: drops("text") == before + 1)
        assert site.server.has("street")
        for _ in range(20):
            peer._channels[label].send("text")
        await until(lambda: not site.server.has("street"))


@pytest.mark.parametrize("label", ["latent", "messages", "other", ""])
async def test_channels_that_nobody_wants_are_closed(site: Site, label: str) -> None:
    before = drops("channel")
    async with stranger(site) as peer:
        channel = peer._connection.createDataChannel(label)
        await until(lambda: channel.readyState == "closed")
        assert drops("channel") == before + 1
        packets = site.server.subscribe("+/latent")
        peer.send(LATENT, split(1, b"still here")[0])
        assert [message.payload for message in await take(packets)] == [b"still here"]


async def test_text_that_is_no_text_ends_one_session_and_nothing_else(site: Site) -> None:
    async with site.channel("yard") as yard, stranger(site) as peer:
        await yard.wait_connected(LIMIT_S)
        channel = peer._channels[MESSAGES]
        channel.transport._data_channel_queue.append((channel, 51, b"\xff\xfe"))  # 51: a string
        peer.send(MESSAGES, b"")
        await until(lambda: not site.server.has("street"))
        assert site.server.has("yard")


@pytest.mark.parametrize(
    "envelope",
    [
        Envelope(Kind.PUBLISH, "yard/state", b"x"),
        Envelope(Kind.PUBLISH, "street/mask", b"x"),
        Envelope(Kind.PUBLISH, "street/control", b"x"),
        Envelope(Kind.PUBLISH, "street/latent", b"x"),
        Envelope(Kind.WILL, "street/latent", b"x", retain=True),
        Envelope(Kind.PUBLISH, "street", b"x"),
        Envelope(Kind.PUBLISH, "street/state/more", b"x"),
        Envelope(Kind.PUBLISH, "bundle/../street", b"x"),
        Envelope(Kind.PUBLISH, "bundle/", b"x"),
        Envelope(Kind.WILL, "yard/state", b"x", retain=True),
        Envelope(Kind.WILL, "bundle/0123456789abcdef", b"x"),
        Envelope(Kind.SUBSCRIBE, "yard/control"),
        Envelope(Kind.SUBSCRIBE, "+/control"),
        Envelope(Kind.SUBSCRIBE, "#"),
        Envelope(Kind.SUBSCRIBE, "streets/control"),
    ],
)
async def test_camera_speaks_and_hears_of_itself_only(site: Site, envelope: Envelope) -> None:
    heard, before = site.server.subscribe("#"), drops("message")
    async with stranger(site) as peer:
        peer.send(MESSAGES, pack_message(envelope))
        peer.send(MESSAGES, pack_message(Envelope(Kind.PUBLISH, "street/state", b"mine")))
        assert await take(heard) == [Message("street/state", b"mine")]
        assert drops("message") == before + 1
        assert site.server.sessions()[0].filters == frozenset()


async def test_camera_may_tell_its_state_its_picture_and_its_bundle(site: Site) -> None:
    heard = site.server.subscribe("#")
    topics = ["street/state", "street/preview", f"bundle/{'5e' * 32}"]
    async with stranger(site) as peer:
        for topic in topics:
            peer.send(MESSAGES, pack_message(Envelope(Kind.PUBLISH, topic, b"x")))
        assert [message.topic for message in await take(heard, 3)] == topics


async def test_filters_and_retained_messages_of_a_camera_are_bounded(site: Site) -> None:
    before = drops("message")
    async with stranger(site) as peer:
        for number in range(40):
            peer.send(MESSAGES, pack_message(Envelope(Kind.SUBSCRIBE, f"street/{number}")))
        await until(lambda: drops("message") == before + 8)
        for number in range(20):
            peer.send(MESSAGES, pack_message(Envelope(Kind.PUBLISH, f"bundle/{number:08x}", b"x", retain=True)))
        await until(lambda: drops("message") == before + 20)
        assert len(site.server.sessions()[0].filters) == 32
        assert len(site.server._retained) == 8


async def test_nothing_is_heard_of_a_session_that_has_made_way(site: Site) -> None:
    heard = site.server.subscribe("#")
    async with stranger(site):
        session = site.server._sessions["street"]
        session.make_way()
        session.peer._take(LATENT, split(1, b"late")[0])
        session.peer._take(MESSAGES, pack_message(Envelope(Kind.PUBLISH, "street/state", b"online", retain=True)))
        assert await quiet(heard)


async def test_any_message_is_obeyed_or_dropped(site: Site) -> None:
    async with stranger(site) as peer:
        rng = random.Random(3)
        for number in range(300):
            data = bytearray(pack_message(Envelope(Kind.PUBLISH, "street/state", rng.randbytes(30))))
            for _ in range(rng.randrange(6)):
                data[rng.randrange(16)] = rng.randrange(256)
            peer.send(rng.choice([MESSAGES, LATENT]), bytes(data[: rng.randrange(1, 50)]))
            if number % 50 == 0:
                await asyncio.sleep(0.01)
        states = site.server.subscribe("street/state")
        peer.send(MESSAGES, pack_message(Envelope(Kind.PUBLISH, "street/state", b"the last word")))
        async with asyncio.timeout(LIMIT_S):
            await anext(state async for state in states if state.payload == b"the last word")


async def test_messages_that_never_end_end_the_session(site: Site) -> None:
    with capture_logs() as lines:
        async with stranger(site) as peer:
            transport = peer._channels[LATENT].transport
            sending, flags = transport._send_chunk, {"flags": 4 | 2}

            async def endless(chunk: object) -> None:
                """Every fragment a first one of a message whose end does not come."""
                if type(chunk).__name__ == "DataChunk":
                    chunk.flags = flags["flags"]  # type: ignore[attr-defined]
                await sending(chunk)  # type: ignore[arg-type]

            transport._send_chunk = endless  # type: ignore[method-assign]
            for _ in range(200):
                if site.server.has("street"):
                    peer.send(LATENT, bytes(16_000))
                    await asyncio.sleep(0.01)
            await until(lambda: not site.server.has("street"))
    assert any("more than it may" in str(line.get("reason")) for line in lines)
