"""The gateway's end of WebRTC: who gets in, what a camera may say, and what hostile ones cannot do."""

import asyncio
import random
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
from channels import LIMIT_S, quiet, take, until
from peers import TOKEN, TOKENS, Air, Site, drops, new_peer, offered, serving, sockets, stranger
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from pipeline.errors import BitstreamError, TransportError
from pipeline.transport import CONTROL, STATE, Message, webrtc_server
from pipeline.transport.webrtc_address import WebRtcOptions
from pipeline.transport.webrtc_messages import Envelope, Kind, pack_message
from pipeline.transport.webrtc_peer import MESSAGES, Peer
from pipeline.transport.webrtc_server import WebRtcLimits, token_check

SDP = {"Content-Type": "application/sdp"}
LOGIN = {"Authorization": f"Bearer {TOKEN}"}
DATA = b"v=0\r\nm=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving() as site:
        yield site


@pytest.fixture
def air(monkeypatch: pytest.MonkeyPatch) -> Air:
    return Air(monkeypatch)


async def posted(
    url: str, data: bytes | str | AsyncIterator[bytes], headers: dict[str, str]
) -> tuple[int, dict[str, str]]:
    async with aiohttp.ClientSession() as client, client.post(url, data=data, headers=headers) as answer:
        await answer.read()
        return answer.status, dict(answer.headers)


@pytest.mark.parametrize(
    ("camera", "headers", "data", "status", "reason"),
    [
        ("Street", LOGIN | SDP, b"v=0", 404, "camera_name"),
        ("street%2Fx", LOGIN | SDP, b"v=0", 404, "camera_name"),
        ("street", SDP, b"v=0", 401, "token"),
        ("street", SDP | {"Authorization": f"Basic {TOKEN}"}, b"v=0", 401, "token"),
        ("street", SDP | {"Authorization": "Bearer wrong"}, b"v=0", 401, "token"),
        ("yard", SDP | LOGIN, b"v=0", 401, "token"),
        ("unknown", SDP | LOGIN, b"v=0", 401, "token"),
        ("street", LOGIN | {"Content-Type": "application/json"}, b"{}", 415, "content_type"),
        ("street", LOGIN | SDP, bytes(65 * 1024), 413, "offer_size"),
        ("street", LOGIN | SDP, b"", 400, "offer"),
        ("street", LOGIN | SDP, b"\xff\xfe", 400, "offer"),
        ("street", LOGIN | SDP, b"v=0\r\n", 400, "offer"),
        ("street", LOGIN | SDP, DATA + b"a=fmtp:99 x=1\r\n", 400, "offer"),
        ("street", LOGIN | SDP, b"v=0\r\nm=audio 9 UDP/TLS/RTP/SAVPF 0\r\n", 400, "offer"),
        ("street", LOGIN | SDP, b"m=application 9 UDP/DTLS/SCTP webrtc-datachannel\r\n" * 2, 400, "offer"),
    ],
)
async def test_offer_is_refused_with_its_reason(
    site: Site, camera: str, headers: dict[str, str], data: bytes, status: int, reason: str
) -> None:
    before = drops(reason)
    got, answer = await posted(site.url(camera), data, headers)
    assert got == status
    assert drops(reason) == before + 1
    assert ("WWW-Authenticate" in answer) == (status == 401)


def test_tokens_of_others_and_unknown_cameras_are_refused() -> None:
    accepts = token_check({"street": "a", "yard": "b"})
    assert accepts("street", "a")
    assert not any(
        accepts(*each)
        for each in [("street", "b"), ("street", ""), ("unknown", ""), ("unknown", "\0x"), ("yard", "\udcff")]
    )


async def test_offer_with_too_many_candidates_is_refused() -> None:
    async with new_peer() as camera, new_peer() as gateway:
        offer = await camera.offer()
        candidate = next(line for line in offer.splitlines() if line.startswith("a=candidate"))
        with pytest.raises(BitstreamError, match="candidates"):
            await gateway.answer(offer + f"{candidate}\r\n" * 100)


async def test_any_offer_is_answered_or_refused_as_one() -> None:
    async with new_peer() as camera:
        lines = (await camera.offer()).split("\r\n")
    for seed in range(60):
        rng = random.Random(seed)
        changed = list(lines)
        for _ in range(3):
            at = rng.randrange(len(changed))
            words = changed[at].split(" ")
            words[rng.randrange(len(words))] = rng.choice(["", "-1", "99999999999", "x"])
            changed[at] = rng.choice([" ".join(words), changed[at][: rng.randrange(20)], ""])
        async with new_peer() as gateway:
            try:
                await gateway.answer("\r\n".join(changed))
            except BitstreamError:
                continue


async def test_answer_names_where_the_session_is_ended(site: Site) -> None:
    async with new_peer() as peer, aiohttp.ClientSession() as client:
        answered = await offered(site, peer)
        assert answered.session is not None
        assert answered.session.path.startswith("/webrtc/street/")
        await peer.accept(answered.text)
        await peer.opened()
        holding = asyncio.create_task(peer.hold())
        for headers, status in (({}, 401), (LOGIN, 200), (LOGIN, 404)):
            async with client.delete(answered.session, headers=headers) as answer:
                assert answer.status == status
            await until(lambda: site.server.has("street") == (status == 401))  # noqa: B023
        await holding


async def test_two_hundred_offers_at_once_are_bounded_work() -> None:
    limits = WebRtcLimits(offers=4, sessions=1000)
    async with serving(limits=limits, accepts=lambda camera, token: True) as site, new_peer() as peer:
        offer, before, open_before = await peer.offer(), drops("too_many_offers"), sockets()
        answers = await asyncio.gather(*[posted(site.url(f"cam-{number}"), offer, SDP) for number in range(200)])
        statuses = [status for status, _ in answers]
        assert set(statuses) == {201, 503}
        assert statuses.count(503) == drops("too_many_offers") - before
        assert statuses.count(201) >= 4
        assert all("Retry-After" in headers for status, headers in answers if status == 503)
        await until(lambda: sockets() < open_before + 30)
        async with site.channel() as camera:
            await camera.wait_connected(LIMIT_S)


async def test_newer_offer_of_a_camera_takes_the_place_of_one_that_is_not_open_yet(site: Site) -> None:
    before = drops("half_open")
    async with new_peer() as first, new_peer() as second:
        await offered(site, first)
        answered = await offered(site, second)
        await until(lambda: drops("half_open") == before + 1)
        await second.accept(answered.text)
        await second.opened()


async def test_camera_that_brings_its_offers_slowly_keeps_no_other_out() -> None:
    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"v"
            await asyncio.sleep(0.1)

    async with serving(limits=WebRtcLimits(offers=2)) as site, asyncio.TaskGroup() as tasks:
        slow = [tasks.create_task(posted(site.url(), endless(), LOGIN | SDP)) for _ in range(2)]
        await asyncio.wait(slow, return_when=asyncio.FIRST_COMPLETED)
        assert [each.result()[0] for each in slow if each.done()] == [503]
        async with site.channel("yard") as yard:
            await yard.wait_connected(2.0)
        for each in slow:
            each.cancel()


async def test_more_cameras_than_allowed_are_refused_and_known_ones_may_come_again() -> None:
    async with serving(limits=WebRtcLimits(sessions=1)) as site, site.channel() as street:
        await street.wait_connected(LIMIT_S)
        before = drops("too_many_sessions")
        async with site.channel("yard") as yard:
            with pytest.raises(TransportError, match="takes no camera now \\(503 too many sessions"):
                await yard.wait_connected(1.0)
        assert drops("too_many_sessions") > before
        site.server._sessions["street"].peer.end("for the test")
        await until(lambda: not street.connected)
        await street.wait_connected(LIMIT_S)


async def test_half_open_peer_is_closed(air: Air) -> None:
    before, open_before = drops("half_open"), sockets()
    async with serving(options=WebRtcOptions(open_s=0.3)) as site, new_peer() as peer:
        with capture_logs() as lines:
            assert (await offered(site, peer)).taken
            await until(lambda: drops("half_open") == before + 1)
        assert site.server.sessions() == ()
        assert any("came to nothing" in line["event"] for line in lines)
    await until(lambda: sockets() <= open_before)


async def test_offer_that_comes_to_nothing_leaves_the_session_that_works(site: Site) -> None:
    async with stranger(site), new_peer() as second:
        before = site.server._sessions["street"]
        await offered(site, second)
        assert site.server._sessions["street"] is before


async def test_new_connection_takes_the_place_of_the_old_one_without_its_will(site: Site) -> None:
    states = site.server.subscribe("+/state")
    async with stranger(site) as old:
        old.send(MESSAGES, pack_message(Envelope(Kind.WILL, "street/state", b"offline", retain=True)))
        old.send(MESSAGES, pack_message(Envelope(Kind.PUBLISH, "street/state", b"old")))
        await take(states)
        async with stranger(site):
            assert "closed" in await old.hold()
            assert len(site.server.sessions()) == 1
            assert await quiet(states)


async def test_publishing_to_a_camera_that_is_not_there_is_an_error_unless_retained(site: Site) -> None:
    with pytest.raises(TransportError, match="'street' is not connected"):
        await site.server.publish("street/control", b"x", CONTROL)
    await site.server.publish("street/control", b"kept", STATE)
    messages: list[bytes] = []
    async with stranger(site, on_message=messages.append) as peer:
        await site.server.publish("street/mask", b"not subscribed")
        peer.send(MESSAGES, pack_message(Envelope(Kind.SUBSCRIBE, "street/control")))
        await until(lambda: len(messages) == 1)
        assert messages == [pack_message(Envelope(Kind.PUBLISH, "street/control", b"kept", qos=1, retain=True))]
        assert not site.server.wants("street/mask")


async def test_what_is_kept_for_late_readers_is_bounded_in_bytes(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webrtc_server, "_RETAINED_BYTES", 100_000)
    for number in range(5):
        await site.server.publish(f"bundle/{number:08x}", bytes(40_000), STATE)
    messages = site.server.subscribe("bundle/+")
    assert [message.topic for message in await take(messages, 2)] == ["bundle/00000003", "bundle/00000004"]
    assert await quiet(messages)


async def test_camera_that_does_not_read_is_told_no_more_than_a_bounded_amount(site: Site, air: Air) -> None:
    async with stranger(site) as peer:
        peer.send(MESSAGES, pack_message(Envelope(Kind.SUBSCRIBE, "street/#")))
        await until(lambda: site.server.wants("street/mask"))
        air.cut()
        before = drops("slow_camera")
        with pytest.raises(TransportError, match="camera 'street': the link is too slow"):
            for _ in range(100):
                await site.server.publish("street/control", bytes(60_000), CONTROL)
        assert drops("slow_camera") == before + 1
        receipts = drops("receipt")
        await site.server.publish("street/receipt", b"r" * 24)
        assert drops("receipt") == receipts + 1


async def test_sessions_tell_who_is_there_and_over_what(site: Site) -> None:
    changes: list[int] = []
    missing = drops("missing")
    async with serving(changed=lambda: changes.append(1)) as site:
        packets = site.server.subscribe("+/latent")
        assert site.server.sessions() == ()
        async with site.channel("yard") as yard, site.channel() as street:
            street.subscribe("street/control")
            await yard.wait_connected(LIMIT_S)
            await street.wait_connected(LIMIT_S)
            await street.publish("street/latent", b"12345")
            assert await take(packets) == [Message("street/latent", b"12345")]
            first, second = site.server.sessions()
            assert (first.camera, second.camera) == ("street", "yard")
            assert drops("missing") == missing
            assert "host" in first.pair
            assert " <-> host " in first.pair
            assert REGISTRY.get_sample_value("maskcast_webrtc_sessions") == 2
        await until(lambda: site.server.sessions() == ())
        assert len(changes) >= 4


async def test_channel_ends_with_its_context(site: Site) -> None:
    async with serving() as short:
        messages = short.server.subscribe("#")
        await short.server.wait_connected(0.1)
    assert [message async for message in messages] == []
    assert not short.server.connected
    with pytest.raises(TransportError):
        await short.server.publish("street/control", b"x", STATE)
    with pytest.raises(TransportError):
        await short.server.wait_connected(0.1)


async def test_silent_camera_is_given_up_with_a_warning(site: Site, air: Air) -> None:
    with capture_logs() as lines:
        async with stranger(site):
            air.cut()
            await until(lambda: not site.server.has("street"))
    over = [line for line in lines if line["event"] == "camera's WebRTC connection is over"]
    assert [line["log_level"] for line in over] == ["warning"]
    assert "nothing heard" in over[0]["reason"]


async def test_gateway_stops_at_once_with_cameras_and_offers_under_way() -> None:
    async with new_peer() as peer, serving() as site:
        await offered(site, peer)  # and never opened
        camera = site.channel("yard")
        async with camera:
            await camera.wait_connected(LIMIT_S)
            begun, tasks = time.monotonic(), site.server._tasks
            await site.server.__aexit__(None, None, None)
            assert time.monotonic() - begun < 1.0
            assert tasks == set()
            await until(lambda: not camera.connected)


async def test_what_goes_wrong_with_one_camera_does_not_touch_the_others(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = {"Authorization": f"Bearer {TOKENS['yard']}"}

    async def fails(self: Peer) -> None:
        raise RuntimeError("unforeseen")

    async with site.channel("street") as channel:
        await channel.wait_connected(LIMIT_S)
        before = drops("failed")
        monkeypatch.setattr(Peer, "opened", fails)
        async with new_peer() as peer:
            status, _ = await posted(site.url("yard"), await peer.offer(), yard | SDP)
        assert status == 201
        await until(lambda: drops("failed") == before + 1)
        assert [each.camera for each in site.server.sessions()] == ["street"]
