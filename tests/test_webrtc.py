"""A camera's channel over WebRTC: what a channel promises, and how it meets a gateway, a link or a token that fails."""

import asyncio
import random
import re
import struct
import time
from functools import partial

import pytest
from channels import LIMIT_S, quiet, take, until
from peers import SWIFT, TOKEN, Air, Site, drops, resident_kb, serving, sockets
from servers import free_port
from structlog.testing import capture_logs

from pipeline.errors import ConfigError, TransportError
from pipeline.transport import CONTROL, LIVE, STATE, Channel, Delivery, Message, open_channel
from pipeline.transport.chunks import CHUNK_BYTES
from pipeline.transport.reconnecting import Retry
from pipeline.transport.webrtc import WebRtcChannel
from pipeline.transport.webrtc_messages import MESSAGE_BYTES
from pipeline.transport.webrtc_peer import Peer

BODY = CHUNK_BYTES - 8


@pytest.fixture
async def site() -> Site:
    async with serving() as site:
        yield site


@pytest.fixture
def air(monkeypatch: pytest.MonkeyPatch) -> Air:
    return Air(monkeypatch)


async def subscribed(site: Site, topic: str) -> None:
    await until(lambda: site.server.wants(topic))


def is_closed(peer: Peer) -> bool:
    return peer._closing is not None and peer._closing.done()


@pytest.mark.parametrize("size", [0, 1, 600, BODY - 1, BODY, BODY + 1, 3 * BODY, 100_000])
async def test_packet_arrives_byte_for_byte(site: Site, size: int) -> None:
    packet = random.Random(size).randbytes(size)
    async with site.channel() as camera:
        packets = site.server.subscribe("+/latent")
        await camera.wait_connected(LIMIT_S)
        await camera.publish("street/latent", packet)
        assert await take(packets) == [Message("street/latent", packet)]


@pytest.mark.parametrize("delivery", [LIVE, CONTROL, Delivery(expiry_s=5, content_type="x", properties={"a": "b"})])
async def test_messages_go_up_in_order(site: Site, delivery: Delivery) -> None:
    async with site.channel() as camera:
        pictures = site.server.subscribe("street/preview")
        await camera.wait_connected(LIMIT_S)
        for number in range(50):
            await camera.publish("street/preview", bytes([number]), delivery)
        assert [message.payload[0] for message in await take(pictures, 50)] == list(range(50))


async def test_only_what_was_subscribed_comes_down(site: Site) -> None:
    async with site.channel() as camera:
        control, masks = camera.subscribe("street/control"), camera.subscribe("street/mask", "street/labels")
        await camera.wait_connected(LIMIT_S)
        await subscribed(site, "street/labels")
        for topic in ("street/stats", "street/labels", "street/control", "street/mask"):
            await site.server.publish(topic, topic.encode(), CONTROL)
        assert [message.topic for message in await take(masks, 2)] == ["street/labels", "street/mask"]
        assert await take(control) == [Message("street/control", b"street/control")]


async def test_subscription_made_while_connected_works_and_one_that_ends_is_told(site: Site) -> None:
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        control = camera.subscribe("street/control")
        await subscribed(site, "street/control")
        control.close()
        kept = camera.subscribe("street/mask")
        await subscribed(site, "street/mask")
        assert not site.server.wants("street/control")
        await site.server.publish("street/mask", b"png")
        assert len(await take(kept)) == 1


async def test_receipt_comes_down_beside_the_messages(site: Site) -> None:
    async with site.channel() as camera:
        receipts = camera.subscribe("street/receipt")
        await camera.wait_connected(LIMIT_S)
        await subscribed(site, "street/receipt")
        await site.server.publish("street/receipt", b"r" * 24)
        assert await take(receipts) == [Message("street/receipt", b"r" * 24)]


async def test_late_reader_gets_what_the_gateway_retains(site: Site) -> None:
    await site.server.publish("street/control", b"old", STATE)
    await site.server.publish("street/control", b"new", STATE)
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        for _ in range(2):  # a second reader of a filter too
            assert await take(camera.subscribe("street/control")) == [Message("street/control", b"new")]


async def test_what_is_retained_waits_for_the_connection_and_is_sent_again(site: Site) -> None:
    camera = site.channel()
    await camera.publish("street/state", b"earlier", STATE)
    await camera.publish("street/state", b"online", STATE)
    states = site.server.subscribe("+/state")
    async with camera:
        assert await take(states) == [Message("street/state", b"online")]
        site.server._sessions["street"].peer.end("for the test")
        assert await take(states) == [Message("street/state", b"online")]
        assert await take(site.server.subscribe("+/state")) == [Message("street/state", b"online")]


async def test_publishing_without_connection_raises_at_once(site: Site) -> None:
    camera = site.channel()
    for topic in ("street/latent", "street/preview"):
        with pytest.raises(TransportError, match="no connection"):
            await camera.publish(topic, b"x")
    async with camera:
        await camera.wait_connected(LIMIT_S)
    for topic, delivery in (("street/latent", LIVE), ("street/state", STATE)):
        with pytest.raises(TransportError, match="no connection"):
            await camera.publish(topic, b"x", delivery)


@pytest.mark.parametrize("delivery", [LIVE, STATE])
async def test_what_is_too_long_is_an_error_for_its_sender_only(site: Site, delivery: Delivery) -> None:
    async with site.channel() as camera:
        with pytest.raises(TransportError, match="at most 65536"):
            await camera.publish("street/state", bytes(MESSAGE_BYTES), delivery)
        await camera.wait_connected(LIMIT_S)
        with pytest.raises(TransportError, match="at most 1048576"):
            await camera.publish("street/latent", bytes(2**20 + 1))
        assert camera.connected


async def test_subscriptions_end_when_the_channel_closes(site: Site) -> None:
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        messages = camera.subscribe("street/control")
    assert [message async for message in messages] == []
    assert [message async for message in camera.subscribe("street/control")] == []
    assert not camera.connected


async def test_all_that_was_said_before_leaving_comes_and_the_will_does_not(site: Site) -> None:
    states = site.server.subscribe("+/state")
    async with site.channel(will=("street/state", b"offline")) as camera:
        await camera.publish("street/state", b"online", STATE)
        await camera.wait_connected(LIMIT_S)
        for _ in range(10):
            await camera.publish("street/preview", bytes(20_000), CONTROL)
        await camera.publish("street/state", b"stopped", STATE)
    assert [message.payload for message in await take(states, 2)] == [b"online", b"stopped"]
    await until(lambda: not site.server.has("street"))
    assert await quiet(states)


async def test_will_is_published_when_the_camera_dies(site: Site, air: Air) -> None:
    states = site.server.subscribe("+/state")
    async with site.channel(will=("street/state", b"offline")) as camera:
        await camera.publish("street/state", b"online", STATE)
        assert [message.payload for message in await take(states)] == [b"online"]
        air.cut()
        assert [message.payload for message in await take(states)] == [b"offline"]
        assert [message.payload for message in await take(site.server.subscribe("+/state"))] == [b"offline"]


async def test_error_in_the_body_goes_up_as_it_is_and_cancellation_passes(site: Site) -> None:
    with pytest.raises(ConfigError, match="mine"):
        async with site.channel() as camera:
            await camera.wait_connected(LIMIT_S)
            raise ConfigError("mine")

    async def read() -> None:
        async with site.channel() as camera:
            await anext(camera.subscribe("street/control"))

    for wait_s in (0.0, 0.01, 0.03, 0.3):
        reading = asyncio.create_task(read())
        await asyncio.sleep(wait_s)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            async with asyncio.timeout(LIMIT_S):
                await reading


async def test_slow_link_makes_packets_wait_and_the_newest_wins(site: Site, air: Air) -> None:
    before = drops("skipped", node="transport")
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        air.cut()
        await camera.publish("street/latent", bytes(20_000))  # more than may be under way unanswered
        older = asyncio.create_task(camera.publish("street/latent", b"older"))
        await asyncio.sleep(0.01)
        newest = asyncio.create_task(camera.publish("street/latent", b"newest"))
        with pytest.raises(TransportError, match="skipped"):
            await older
        assert not newest.done()
        begun = time.monotonic()
        with pytest.raises(TransportError, match="skipped"):
            await newest
        assert 0.5 < time.monotonic() - begun < 2.0
        assert drops("skipped", node="transport") == before + 2


async def test_packets_that_were_skipped_are_missing_at_the_gateway(site: Site) -> None:
    before = drops("missing")
    async with site.channel() as camera:
        packets = site.server.subscribe("+/latent")
        await camera.wait_connected(LIMIT_S)
        await camera.publish("street/latent", bytes(50_000))
        older = asyncio.create_task(camera.publish("street/latent", b"older"))
        await asyncio.sleep(0)
        await camera.publish("street/latent", b"newest")
        with pytest.raises(TransportError, match="skipped"):
            await older
        assert [len(message.payload) for message in await take(packets, 2)] == [50_000, 6]
        for _ in range(8):  # until four newer ones came the second may only be late
            await camera.publish("street/latent", b"more")
        await take(packets, 8)
        assert drops("missing") == before + 1


async def test_pictures_are_refused_where_much_waits_and_states_are_not(site: Site, air: Air) -> None:
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        air.cut()
        await camera.publish("street/preview", bytes(40_000))
        with pytest.raises(TransportError, match="too slow"):
            await camera.publish("street/preview", b"jpeg")
        await camera.publish("street/state", b"online", STATE)
        for _ in range(4):
            await camera.publish("street/state", bytes(60_000), CONTROL)
        with pytest.raises(TransportError, match="too slow"):
            await camera.publish("street/state", bytes(60_000), CONTROL)


async def test_lossy_link_delays_no_packet_behind_a_lost_one(site: Site, air: Air) -> None:
    delays_s: list[float] = []
    before = drops("skipped", node="transport")

    async def read() -> None:
        async for message in site.server.subscribe("+/latent"):
            (sent_s,) = struct.unpack_from("!d", message.payload)
            delays_s.append(time.monotonic() - sent_s)

    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        rng = random.Random(7)
        air.lost, air.delay_s = lambda number: rng.random() < 0.05, 0.04
        reading = asyncio.create_task(read())
        for _ in range(100):
            await camera.publish("street/latent", struct.pack("!d", time.monotonic()) + bytes(592))
            await asyncio.sleep(0.02)
        await until(lambda: len(delays_s) > 80)
        reading.cancel()
        # A timer of SCTP, had all waited for it, would have taken 1 s.
        assert sorted(delays_s)[int(0.9 * len(delays_s))] < 0.2
        assert max(delays_s) < 0.9
        assert drops("skipped", node="transport") == before


@pytest.mark.parametrize("token", ["wrong", ""])
async def test_wrong_token_is_told_once_without_the_token_and_tried_again_slowly(site: Site, token: str) -> None:
    pauses: list[float] = []

    class Slow(random.Random):
        def uniform(self, a: float, b: float) -> float:
            pauses.append(a)
            return 0.01

    with capture_logs() as lines:
        url = f"webrtc+http://{token + '@' if token else ''}127.0.0.1:{site.port}"
        async with WebRtcChannel(url, camera="street", rng=Slow(), retry=Retry(refused_s=0.2)) as camera:
            await until(lambda: len(pauses) >= 2)
            with pytest.raises(TransportError, match="refuses our token"):
                await camera.wait_connected(0.05)
    refusals = [line for line in lines if line["log_level"] == "error"]
    assert len(refusals) == 1
    assert "refuses our token" in refusals[0]["event"]
    assert refusals[0]["camera"] == "street"
    assert "wrong" not in repr([line for line in lines if line["log_level"] == "error"]).replace("wrong token", "")


async def test_channel_waits_for_a_gateway_that_is_not_there_yet() -> None:
    port = free_port()
    nobody = Site(None, port)  # type: ignore[arg-type]
    with capture_logs() as lines:
        async with nobody.channel() as camera:
            with pytest.raises(TransportError, match="was not reached"):
                await camera.wait_connected(0.5)
            async with serving(port):
                await camera.wait_connected(LIMIT_S)
                connected = [line for line in lines if line["event"] == "connected to the gateway"]
                assert re.fullmatch("host [0-9a-f.:]+ <-> host [0-9a-f.:]+", connected[0]["pair"])
    assert len([line for line in lines if line["event"] == "waiting for the gateway"]) <= 2
    assert TOKEN not in repr(lines)


async def test_gateway_that_stops_and_comes_back_is_found_again() -> None:
    port = free_port()
    async with Site(None, port).channel() as camera:  # type: ignore[arg-type]
        for _ in range(3):
            async with serving(port):
                await camera.wait_connected(LIMIT_S)
            await until(lambda: not camera.connected, 2.0)


async def test_after_a_cut_both_ends_recover_by_themselves(site: Site, air: Air) -> None:
    async with site.channel(will=("street/state", b"offline")) as camera:
        await camera.wait_connected(LIMIT_S)
        air.cut()
        await until(lambda: not camera.connected and not site.server.has("street"), 4 * SWIFT.silence_s)
        air.mend()
        await camera.wait_connected(5.0 + SWIFT.open_s)  # an offer that was under way is waited for first
        packets = site.server.subscribe("+/latent")
        await camera.publish("street/latent", b"x")
        assert len(await take(packets)) == 1


async def test_quiet_link_is_kept(site: Site) -> None:
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        before = site.server._sessions["street"]
        await asyncio.sleep(2 * SWIFT.silence_s)
        assert site.server._sessions["street"] is before


async def test_thin_link_that_is_busy_with_one_long_message_is_kept(site: Site, air: Air) -> None:
    """Nothing whole arrives for longer than the silence that ends a connection."""
    pictures = site.server.subscribe("+/preview")
    async with site.channel() as camera:
        await camera.wait_connected(LIMIT_S)
        before = site.server._sessions["street"]
        air.delay_s = 0.3  # at first 3 datagrams in a round trip, later a few more
        begun = time.monotonic()
        await camera.publish("street/preview", bytes(60_000))
        assert [len(message.payload) for message in await take(pictures)] == [60_000]
        assert time.monotonic() - begun > SWIFT.silence_s
        assert site.server._sessions["street"] is before
        assert camera.connected


async def test_camera_thrown_out_by_its_double_says_so_and_lets_it_be(site: Site) -> None:
    with capture_logs() as lines:
        async with site.channel() as first:
            await first.wait_connected(LIMIT_S)
            async with site.channel() as second:
                await second.wait_connected(LIMIT_S)
                await until(lambda: not first.connected)
                await asyncio.sleep(0.5)
                assert second.connected
                assert not first.connected
    assert any("another camera of this name" in line["event"] for line in lines if line["log_level"] == "error")


async def test_nothing_is_left_of_many_connections(site: Site, air: Air) -> None:
    """Sockets, tasks and memory, over sessions that either end lost without a word to the other."""
    async with site.channel(retry=Retry(0.01, 0.02)) as camera:
        marks = []
        for number in range(60):
            await camera.wait_connected(LIMIT_S)
            await until(lambda: site.server.has("street"))
            if number in (10, 59):
                marks.append((sockets(), len(asyncio.all_tasks()), resident_kb()))
            ends = [site.server._sessions["street"].peer, camera._peer]
            first, second = ends if number % 2 else reversed(ends)
            air.cut()  # not even the end's last words arrive
            first.end("for the test")
            await until(partial(is_closed, first))
            air.mend()
            second.end("for the test")
            await until(partial(is_closed, second))
    early, late = marks
    assert late[0] <= early[0] + 2
    assert late[1] <= early[1] + 3
    assert late[2] <= early[2] + 3000


async def test_open_channel_gives_a_camera_its_channel_and_no_other_node(site: Site) -> None:
    url = f"webrtc+http://{TOKEN}@127.0.0.1:{site.port}"
    channel: Channel = open_channel(url, camera="street", webrtc=SWIFT)
    async with channel:
        await channel.wait_connected(LIMIT_S)
        assert channel.dropped == 0
    with pytest.raises(ConfigError, match="only a camera"):
        open_channel(url)
