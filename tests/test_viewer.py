"""The viewer's contract: its API, its live feed, and what it lets through."""

import asyncio
import json
import struct
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import aiohttp.web
import cv2
import numpy as np
import pytest
from prometheus_client import REGISTRY

from nodes.preview import Preview
from nodes.viewer import main, serve
from nodes.viewer.feed import Feed, Outbox
from nodes.viewer.pictures import read_mask, read_preview
from nodes.viewer.state import Slot, Update, Wall
from pipeline.config import ViewerSettings
from pipeline.errors import BitstreamError, ConfigError
from pipeline.mask_image import pack_mask
from pipeline.messages import Frame, FrameId, Kind, Mask
from pipeline.transport import STATE, Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel

PALETTE = np.array([[128, 128, 128], [128, 0, 0], [128, 64, 128]], np.uint8)
HASH = "0a0b0c0d" + "0" * 56
STATS = {
    "fps": 25.0,
    "kbit_s": 34.25,
    "latency_p50_ms": 21.0,
    "latency_p95_ms": 40.5,
    "drops": {"late": 3},
    "share": {"road": 0.75, "sky": 0.25},
    "zones": {"door": {"road": 1.0, "sky": 0.0}},
    "key_share": 1.0,
    "kinds": {"key": {"regions_s": 25.0, "kbit_s": 33.5}, "absent": {"regions_s": 0.0, "kbit_s": 0.0}},
}
MANIFEST = {
    "name": "camvid",
    "hash": HASH,
    "classes": [{"name": "sky", "colour": [128, 128, 128]}],
    "grid": "1x1",
}


def mask_png(
    camera: str = "cam-1",
    sequence: int = 1,
    *,
    epoch: int = 7,
    captured_ms: int = 1_000_000,
    kinds: tuple[Kind | None, ...] = (),
) -> bytes:
    classes = np.zeros((24, 32), np.uint8)
    classes[12:] = 2
    classes[:, sequence % 32] = 1
    identity = FrameId(epoch, sequence)
    mask = Mask(identity, captured_ms, bytes.fromhex("0a0b0c0d"), classes, columns=len(kinds) or 1, kinds=kinds)
    return pack_mask(mask, camera, PALETTE)


def labels_of(sequence: int = 1, *, epoch: int = 7) -> dict[str, Any]:
    labels = [{"name": "sky", "score": 0.25}, {"name": "road", "score": 1.0}]
    identity = {"epoch": epoch, "sequence": sequence, "captured_ms": 1_000_000, "bundle": "0a0b0c0d"}
    return {**identity, "labels": labels}


def preview_jpeg(value: int = 90) -> bytes:
    return cv2.imencode(".jpg", np.full((24, 32, 3), value, np.uint8))[1].tobytes()


def dropped(reason: str) -> float:
    return REGISTRY.get_sample_value("maskcast_drops_total", {"node": "viewer", "reason": reason}) or 0.0


@dataclass
class Viewer:
    url: str
    camera: MemoryChannel  # publishes what a camera and a worker would
    web: aiohttp.ClientSession

    async def publish(self, topic: str, content: bytes | dict[str, Any]) -> None:
        payload = content if isinstance(content, bytes) else json.dumps(content).encode()
        await self.camera.publish(topic, payload)
        await asyncio.sleep(0.02)

    async def get(self, path: str) -> tuple[aiohttp.ClientResponse, bytes]:
        async with self.web.get(self.url + path) as answer:
            return answer, await answer.read()


@asynccontextmanager
async def running_viewer(broker: MemoryBroker | None = None, **limits: Any) -> AsyncIterator[Viewer]:
    broker = broker or MemoryBroker()
    async with (
        MemoryChannel(broker) as camera,
        MemoryChannel(broker) as channel,
        serve(channel, host="127.0.0.1", port=0, now_ms=lambda: 1_000_250, **limits) as url,
        aiohttp.ClientSession() as web,
    ):
        yield Viewer(url, camera, web)


@pytest.fixture
async def viewer() -> AsyncIterator[Viewer]:
    async with running_viewer() as running:
        yield running


def parsed(message: aiohttp.WSMessage) -> tuple[dict[str, Any], bytes]:
    """Header and picture of one message of the live feed."""
    if message.type is aiohttp.WSMsgType.TEXT:
        return json.loads(message.data), b""
    (size,) = struct.unpack_from("!I", message.data)
    return json.loads(message.data[4 : 4 + size]), message.data[4 + size :]


async def next_of(socket: aiohttp.ClientWebSocketResponse, kind: str) -> tuple[dict[str, Any], bytes]:
    async with asyncio.timeout(5):
        while True:
            header, picture = parsed(await socket.receive())
            if header["type"] == kind:
                return header, picture


async def test_cameras_are_listed_by_name_with_their_newest_facts(viewer: Viewer) -> None:
    await viewer.publish("cam-2/state", {"state": "online", "since": 999_000})
    await viewer.publish("cam-1/mask", mask_png(sequence=5))
    await viewer.publish("cam-1/stats", STATS)
    _, body = await viewer.get("/api/cameras")
    first, second = json.loads(body)
    assert (first["camera"], first["sequence"], first["epoch"], first["bundle"]) == (
        "cam-1",
        5,
        7,
        "0a0b0c0d",
    )
    assert (first["width"], first["height"], first["age_ms"], first["stats"]) == (32, 24, 250, STATS)
    assert first["stats_at_ms"] == 1_000_250
    assert (second["camera"], second["state"], second["since_ms"]) == ("cam-2", "online", 999_000)
    assert (second["source"], second["control"], second["refused"], second["stats_at_ms"]) == (None, None, None, None)


async def test_what_a_camera_says_of_its_source_and_of_what_it_was_told_is_in_the_list(viewer: Viewer) -> None:
    control = {"quality": 4, "pause": True, "max_fps": 5.0, "max_kbit_s": None}
    size = {"source_width": 640, "source_height": 360, "fps": 12.5}
    said = {"source": "lost", "control": control, "refused": "control: no", "transport": "mqtt", **size}
    said |= {"zones": {"door": [[0.1, 0.4], [0.3, 0.4], [0.3, 1.0]]}}
    await viewer.publish("cam-1/state", {"state": "online", **said})
    (camera,) = json.loads((await viewer.get("/api/cameras"))[1])
    assert {name: camera[name] for name in said} == said


async def test_gateways_and_workers_are_listed_while_they_are_online(viewer: Viewer) -> None:
    facts = {"bundle": HASH, "transport": "mqtt", "since": 999_000}

    async def told(socket: aiohttp.ClientWebSocketResponse) -> tuple[list[str], list[str]]:
        header, _ = await next_of(socket, "nodes")
        return header["gateway"], header["worker"]

    async with viewer.web.ws_connect(viewer.url + "/ws") as socket:
        assert await told(socket) == ([], [])
        await viewer.publish("worker/b/state", {"state": "online", **facts})
        await viewer.publish("worker/a.1/state", {"state": "online", **facts})
        await viewer.publish("worker/old/state", {"state": "offline", **facts})
        await viewer.publish("gateway/g/state", {"state": "online", "transport": "mqtt", "since": 999_000})
        assert [await told(socket) for _ in range(3)] == [([], ["b"]), ([], ["a.1", "b"]), (["g"], ["a.1", "b"])]
        assert json.loads((await viewer.get("/api/workers"))[1]) == [
            {"worker": name, "bundle": HASH, "transport": "mqtt", "since_ms": 999_000} for name in ("a.1", "b")
        ]
        assert json.loads((await viewer.get("/api/gateways"))[1]) == [
            {"gateway": "g", "bundle": None, "transport": "mqtt", "since_ms": 999_000}
        ]
        before = dropped("state")
        for name, payload in (("a.1", b'{"state": "stopped"}'), ("b", b""), ("c", b"[]")):
            await viewer.publish(f"worker/{name}/state", payload)
        assert [await told(socket) for _ in range(2)] == [(["g"], ["b"]), (["g"], [])]
    assert dropped("state") == before + 1
    assert json.loads((await viewer.get("/api/cameras"))[1]) == []


async def test_a_camera_may_be_called_gateway(viewer: Viewer) -> None:
    await viewer.publish("gateway/state", {"state": "online"})
    assert [camera["camera"] for camera in json.loads((await viewer.get("/api/cameras"))[1])] == ["gateway"]


def test_nodes_are_bounded() -> None:
    wall = Wall()
    for number in range(300):
        wall.take(Message(f"worker/{number}/state", b'{"state": "online"}'))
    assert len(wall.nodes["worker"]) == 256


async def test_mask_is_given_exactly_as_published(viewer: Viewer) -> None:
    await viewer.publish("cam-1/mask", mask_png())
    answer, body = await viewer.get("/api/cameras/cam-1/mask.png")
    assert answer.content_type == "image/png"
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Last-Modified"] == "Thu, 01 Jan 1970 00:16:40 GMT"
    assert body == mask_png()


async def test_names_and_colours_of_classes_are_given_by_bundle(viewer: Viewer) -> None:
    await viewer.publish(f"bundle/{HASH}", MANIFEST)
    _, body = await viewer.get("/api/bundles")
    assert json.loads(body) == [{name: MANIFEST[name] for name in ("name", "hash", "classes")}]


async def test_preview_is_given_exactly_as_published(viewer: Viewer) -> None:
    await viewer.publish("cam-1/preview", preview_jpeg())
    answer, body = await viewer.get("/api/cameras/cam-1/preview.jpg")
    assert answer.content_type == "image/jpeg"
    assert body == preview_jpeg()


def test_a_preview_says_of_which_frame_it_is_where_it_does() -> None:
    made = Preview(max_fps=5, max_width=64, jpeg_quality=60).picture(
        Frame(FrameId(7, 4_000_000_000), 0, np.zeros((48, 64, 3), np.uint8))
    )
    assert made is not None
    assert read_preview(made).frame == FrameId(7, 4_000_000_000)
    assert read_preview(preview_jpeg()).frame is None
    for other in (b"maskcast 7", b"maskcast 7 -1", b"maskcast 65536 1", b"maskcast 1 4294967296", b"of a camera"):
        comment = b"\xff\xfe" + (2 + len(other)).to_bytes(2) + other
        assert read_preview(preview_jpeg()[:2] + comment + preview_jpeg()[2:]).frame is None


async def test_stats_are_given_as_json(viewer: Viewer) -> None:
    await viewer.publish("cam-1/stats", {**STATS, "of a newer version": 1})
    answer, body = await viewer.get("/api/cameras/cam-1/stats")
    assert answer.content_type == "application/json"
    assert json.loads(body) == {**STATS, "at_ms": 1_000_250}


async def test_labels_are_given_as_json(viewer: Viewer) -> None:
    await viewer.publish("cam-1/labels", {**labels_of(), "of a newer version": 1})
    answer, body = await viewer.get("/api/cameras/cam-1/labels")
    assert answer.content_type == "application/json"
    assert json.loads(body) == labels_of()


@pytest.mark.parametrize(
    "path",
    [f"{name}/{what}" for name in ("nobody", "cam-1") for what in ("mask.png", "preview.jpg", "stats", "labels")]
    + ["..%2f/stats"],
)
async def test_what_is_not_there_is_not_found(viewer: Viewer, path: str) -> None:
    await viewer.publish("cam-1/state", {"state": "online"})
    answer, body = await viewer.get(f"/api/cameras/{path}")
    assert answer.status == 404
    assert b"camera" in body


@pytest.mark.parametrize(
    ("path", "content_type"),
    [
        ("/", "text/html"),
        ("/viewer.js", "text/javascript"),
        ("/card.js", "text/javascript"),
        ("/picture.js", "text/javascript"),
        ("/rates.js", "text/javascript"),
        ("/regions.js", "text/javascript"),
        ("/zones.js", "text/javascript"),
        ("/viewer.css", "text/css"),
        ("/icon.svg", "image/svg+xml"),
    ],
)
async def test_page_is_served_with_its_type_and_strict_headers(viewer: Viewer, path: str, content_type: str) -> None:
    answer, body = await viewer.get(path)
    assert (answer.status, answer.content_type) == (200, content_type)
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
    assert "unsafe" not in answer.headers["Content-Security-Policy"]
    assert b"https://" not in body  # works offline


async def test_errors_carry_the_strict_headers_too(viewer: Viewer) -> None:
    answer, _ = await viewer.get("/nothing")
    assert (answer.status, answer.headers["X-Content-Type-Options"]) == (404, "nosniff")


async def test_health_pages_are_on_the_viewers_port(viewer: Viewer) -> None:
    await viewer.publish("cam-1/mask", b"no mask")
    for path, status, word in [
        ("/healthz", 200, b"alive"),
        ("/readyz", 200, b"ready"),
        ("/metrics", 200, b"maskcast_drops"),
    ]:
        answer, body = await viewer.get(path)
        assert (answer.status, word in body) == (status, True)


async def test_not_ready_while_there_is_no_broker(viewer: Viewer) -> None:
    channel = MemoryChannel(MemoryBroker())
    async with serve(channel, host="127.0.0.1", port=0) as url, viewer.web.get(url + "/readyz") as answer:
        assert (answer.status, await answer.text()) == (503, "waiting for the broker\n")


async def test_browser_that_comes_late_is_told_everything(viewer: Viewer) -> None:
    await viewer.publish(f"bundle/{HASH}", MANIFEST)
    await viewer.publish("cam-1/state", {"state": "online", "since": 999_000})
    await viewer.publish("cam-1/stats", STATS)
    await viewer.publish("cam-1/preview", preview_jpeg())
    await viewer.publish("cam-1/labels", labels_of(4))
    await viewer.publish("cam-1/mask", mask_png(sequence=4))
    async with viewer.web.ws_connect(viewer.url + "/ws") as socket:
        told = [parsed(await socket.receive()) for _ in range(9)]
    assert told.pop(1)[0] == {"type": "nodes", "gateway": [], "worker": []}
    kinds = ["viewer", "bundle", "state", "stats", "rates", "preview", "labels", "mask"]
    assert [header["type"] for header, _ in told] == kinds
    assert told[0][0] == {"type": "viewer", "now_ms": 1_000_250, "connected": True}
    assert told[1][0]["bundle"]["classes"] == [{"name": "sky", "colour": [128, 128, 128]}]
    assert told[3][0]["stats"] == STATS
    assert told[3][0]["at_ms"] == 1_000_250
    assert told[4][0]["rates"] == [[1_000_250, 34.25]]
    assert told[5][1] == preview_jpeg()
    assert told[6][0] == {"type": "labels", "camera": "cam-1", "labels": labels_of(4)}
    assert (told[7][0]["sequence"], told[7][0]["captured_ms"], told[7][1]) == (
        4,
        1_000_000,
        mask_png(sequence=4),
    )


async def test_live_mask_reaches_every_browser(viewer: Viewer) -> None:
    async with (
        viewer.web.ws_connect(viewer.url + "/ws") as one,
        viewer.web.ws_connect(viewer.url + "/ws") as two,
    ):
        await viewer.publish("cam-1/mask", mask_png(sequence=9))
        for socket in (one, two):
            header, png = await next_of(socket, "mask")
            assert (header["camera"], header["sequence"], png) == ("cam-1", 9, mask_png(sequence=9))


async def test_how_regions_were_coded_reaches_browsers_and_the_api(viewer: Viewer) -> None:
    async with viewer.web.ws_connect(viewer.url + "/ws") as socket:
        await viewer.publish("cam-1/mask", mask_png(sequence=1))
        assert (await next_of(socket, "mask"))[0]["regions"] == ""
        assert json.loads((await viewer.get("/api/cameras"))[1])[0]["regions"] is None
        await viewer.publish("cam-1/mask", mask_png(sequence=2, kinds=(Kind.KEY, Kind.WARP, Kind.DELTA, None)))
        assert (await next_of(socket, "mask"))[0]["regions"] == "1x4 KWD-"
        assert json.loads((await viewer.get("/api/cameras"))[1])[0]["regions"] == "1x4 KWD-"


async def test_slow_browser_gets_the_newest_and_no_backlog(viewer: Viewer) -> None:
    before = dropped("slow browser")
    padded = [with_padding(mask_png(sequence=n), 1 << 20) for n in range(1, 41)]
    async with viewer.web.ws_connect(viewer.url + "/ws", max_msg_size=1 << 22) as socket:
        for png in padded:
            await viewer.publish("cam-1/mask", png)
        seen: list[int] = []
        while not seen or seen[-1] < 40:
            header, _ = await next_of(socket, "mask")
            seen.append(header["sequence"])
    assert seen == sorted(seen)
    assert len(seen) < 30
    assert dropped("slow browser") - before == 40 - len(seen)


def with_padding(png: bytes, size: int) -> bytes:
    """The same picture, with a chunk before its end that programs pass over."""
    return with_chunk(png, b"paDd", bytes(size))


def with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """The same picture with one more chunk before its end."""
    chunk = struct.pack("!I4s", len(body), kind) + body + struct.pack("!I", zlib.crc32(kind + body))
    return png[:-12] + chunk + png[-12:]


async def test_browsers_are_bounded() -> None:
    async with running_viewer(browser_limit=1) as viewer, viewer.web.ws_connect(viewer.url + "/ws"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await viewer.web.ws_connect(viewer.url + "/ws")
        assert refused.value.status == 503


async def test_browsers_that_come_at_once_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare = aiohttp.web.WebSocketResponse.prepare

    async def slowly(self: aiohttp.web.WebSocketResponse, request: aiohttp.web.BaseRequest) -> object:
        await asyncio.sleep(0.1)
        return await prepare(self, request)

    monkeypatch.setattr(aiohttp.web.WebSocketResponse, "prepare", slowly)
    async with running_viewer(browser_limit=2) as viewer:
        came = await asyncio.gather(
            *(viewer.web.ws_connect(viewer.url + "/ws") for _ in range(5)), return_exceptions=True
        )
        refused = [each.status for each in came if isinstance(each, aiohttp.WSServerHandshakeError)]
        assert refused == [503] * 3
        for socket in came:
            if isinstance(socket, aiohttp.ClientWebSocketResponse):
                await next_of(socket, "viewer")


async def test_browser_that_left_makes_room() -> None:
    async with running_viewer(browser_limit=1) as viewer:
        for _ in range(3):
            async with viewer.web.ws_connect(viewer.url + "/ws") as socket:
                await next_of(socket, "viewer")
            await asyncio.sleep(0.05)


async def test_feed_is_refused_to_pages_of_other_sites(viewer: Viewer) -> None:
    for origin in ("http://evil.example", "null", "http://[x"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await viewer.web.ws_connect(viewer.url + "/ws", origin=origin)
        assert refused.value.status == 403
    async with viewer.web.ws_connect(viewer.url + "/ws", origin=viewer.url) as socket:
        await next_of(socket, "viewer")


async def test_sites_that_are_named_may_read_the_feed_and_show_the_page_in_a_frame() -> None:
    async with running_viewer(origins=["https://home.example"]) as viewer:
        answer, _ = await viewer.get("/")
        assert answer.headers["Content-Security-Policy"].endswith("frame-ancestors 'self' https://home.example")
        async with viewer.web.ws_connect(viewer.url + "/ws", origin="https://home.example") as socket:
            await next_of(socket, "viewer")
        for origin in ("https://home.example.evil", "http://home.example", "https://home.example:444"):
            with pytest.raises(aiohttp.WSServerHandshakeError):
                await viewer.web.ws_connect(viewer.url + "/ws", origin=origin)
    async with running_viewer() as viewer:
        assert (await viewer.get("/"))[0].headers["Content-Security-Policy"].endswith("frame-ancestors 'none'")


async def test_a_page_whose_name_was_made_to_lead_here_gets_nothing() -> None:
    evil = {"Host": "evil.example:8080"}
    async with running_viewer(origins=["https://masks.example"]) as viewer:
        await viewer.publish("cam-1/mask", mask_png())
        for path in ("/", "/api/cameras", "/api/cameras/cam-1/mask.png", "/nothing"):
            async with viewer.web.get(viewer.url + path, headers=evil) as answer:
                assert answer.status == 403
                assert answer.headers["X-Content-Type-Options"] == "nosniff"
                text = await answer.text()
                assert "https://evil.example:8080 or http://evil.example:8080, in viewer.origins" in text
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await viewer.web.ws_connect(viewer.url + "/ws", headers=evil, origin="http://evil.example:8080")
        assert refused.value.status == 403
        for path in ("/healthz", "/readyz", "/metrics"):
            async with viewer.web.get(viewer.url + path, headers=evil) as answer:
                assert answer.status == 200


async def test_a_proxy_on_the_same_machine_passes_its_own_host_on_where_its_origin_is_named() -> None:
    proxied = {"Host": "masks.example"}
    async with running_viewer(origins=["https://masks.example"]) as viewer:
        async with viewer.web.get(viewer.url, headers=proxied) as answer:
            assert answer.status == 200
        async with viewer.web.ws_connect(viewer.url + "/ws", headers=proxied, origin="https://masks.example") as socket:
            await next_of(socket, "viewer")


async def test_browsers_are_told_when_the_viewer_stops() -> None:
    async with aiohttp.ClientSession() as web:
        async with running_viewer() as viewer:
            socket = await web.ws_connect(viewer.url + "/ws")
            await next_of(socket, "viewer")
        async with asyncio.timeout(3):
            while (message := await socket.receive()).type is not aiohttp.WSMsgType.CLOSE:
                pass
        assert message.data == aiohttp.WSCloseCode.GOING_AWAY


HOSTILE = [
    ("mask", b""),
    ("mask", b"\x89PNG\r\n\x1a\n"),
    ("mask", mask_png()[:-1]),
    ("mask", mask_png() + b"x"),
    ("mask", mask_png(camera="cam-2")),
    ("mask", cv2.imencode(".png", np.zeros((4, 4, 3), np.uint8))[1].tobytes()),
    ("mask", with_padding(mask_png(), 5 << 20)),
    ("mask", with_chunk(mask_png(), b"tEXt", b"regions\x002x2 KWK")),
    ("mask", with_chunk(mask_png(), b"tEXt", b"regions\x001x1 <b>")),
    ("mask", with_chunk(mask_png(), b"tEXt", b"regions\x00" + b"9" * 5000 + b"x1 K")),
    ("preview", b"GIF89a"),
    ("preview", b"\xff\xd8\xff\xe0"),
    ("preview", b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff" + bytes(20)),
    ("preview", preview_jpeg() + bytes(2 << 20)),
    ("labels", b"{}"),
    ("labels", json.dumps({**labels_of(), "labels": [{"name": "<b>", "score": 2}]}).encode()),
    ("stats", b"{"),
    ("stats", b'{"fps": NaN}'),
    ("stats", b'{"fps": "<script>"}'),
    ("stats", b'{"share": ' + b"[" * 100_000),
    ("stats", json.dumps({"drops": {str(n): n for n in range(1000)}}).encode()),
    ("stats", b" " * (1 << 20) + b"{}"),
    ("state", b"[]"),
    ("state", b'{"state": "on fire"}'),
    ("state", b"\xff\xfe"),
    ("bundle", b'{"hash": "other", "classes": []}'),
    ("bundle", b"null"),
]


@pytest.mark.parametrize(("kind", "payload"), HOSTILE)
async def test_hostile_payload_is_dropped_and_counted(viewer: Viewer, kind: str, payload: bytes) -> None:
    before = dropped(kind)
    await viewer.publish(f"bundle/{HASH}" if kind == "bundle" else f"cam-1/{kind}", payload)
    assert dropped(kind) == before + 1
    await viewer.publish("cam-9/mask", mask_png(camera="cam-9"))
    _, body = await viewer.get("/api/cameras")
    assert [camera["camera"] for camera in json.loads(body)] == ["cam-9"]


async def test_name_that_is_no_cameras_is_dropped(viewer: Viewer) -> None:
    before = dropped("state")
    await viewer.publish("<b>/state", {"state": "online"})
    assert dropped("state") == before + 1


def test_every_truncation_and_flip_of_a_mask_is_refused() -> None:
    png = mask_png()
    for at in range(len(png)):
        with pytest.raises(BitstreamError):
            read_mask(png[:at])
        with pytest.raises(BitstreamError):
            read_mask(png[:at] + bytes([png[at] ^ 0x10]) + png[at + 1 :])


def test_truncated_preview_never_raises_anything_else() -> None:
    jpeg = preview_jpeg()
    for at in range(len(jpeg)):
        try:
            read_preview(jpeg[:at])
        except BitstreamError:
            continue


def test_mask_that_is_late_or_repeated_is_not_shown() -> None:
    wall, before = Wall(), dropped("late")
    assert wall.take(Message("cam-1/mask", mask_png(sequence=5)))
    assert not wall.take(Message("cam-1/mask", mask_png(sequence=5)))
    assert not wall.take(Message("cam-1/mask", mask_png(sequence=4)))
    assert wall.take(Message("cam-1/mask", mask_png(sequence=1, epoch=8)))
    assert dropped("late") == before + 2


def test_labels_that_are_late_or_repeated_are_not_shown() -> None:
    wall, before = Wall(), dropped("late")
    taken = [
        bool(wall.take(Message("cam-1/labels", json.dumps(labels_of(sequence, epoch=epoch)).encode())))
        for sequence, epoch in ((5, 7), (5, 7), (4, 7), (1, 8))
    ]
    assert taken == [True, False, False, True]
    assert dropped("late") == before + 2


def frame_message(kind: str, frame: FrameId) -> Message:
    labels = json.dumps(labels_of(frame.sequence, epoch=frame.epoch)).encode()
    payload = mask_png(sequence=frame.sequence, epoch=frame.epoch) if kind == "mask" else labels
    return Message(f"cam-1/{kind}", payload)


@pytest.mark.parametrize("kind", ["mask", "labels"])
def test_order_that_browsers_see_is_that_of_the_workers(kind: str) -> None:
    now_s = 0.0
    wall = Wall(clock=lambda: now_s)

    def are_shown(epoch: int, *sequences: int) -> list[bool]:
        return [bool(wall.take(frame_message(kind, FrameId(epoch, each)))) for each in sequences]

    assert are_shown(7, 2**32 - 1, 0, 1, 2**32 - 1) == [True, True, True, False]
    assert are_shown(8, 100_000) == [True]
    assert are_shown(7, 2) == [False]
    assert are_shown(8, 0) == [False]
    now_s = 60.0
    assert are_shown(8, 0, 1, 100_000) == [True, True, True]  # a camera that starts again may draw the same epoch


@pytest.mark.parametrize("every_ms", [50, 160, 900, 1000, 1100])
def test_data_rates_of_the_last_minute_are_kept_and_not_many_more(every_ms: int) -> None:
    now = 5_000_000

    def clock() -> int:
        return now

    wall = Wall(now_ms=clock)
    for count in range(200_000 // every_ms):
        now += every_ms
        wall.take(Message("cam-1/stats", json.dumps({**STATS, "kbit_s": count}).encode()))
    rates = wall.cameras["cam-1"].rates
    assert rates[-1].kbit_s == count
    assert now - rates[0].at_ms >= 60_000
    assert len(rates) <= 128
    gaps_ms = np.diff([rate.at_ms for rate in rates])
    assert gaps_ms.min() > 0
    assert gaps_ms.max() <= 1100


def test_statistics_without_a_data_rate_add_none() -> None:
    wall = Wall()
    wall.take(Message("cam-1/stats", b'{"fps": 25}'))
    assert not wall.cameras["cam-1"].rates
    assert [update.slot.kind for update in wall.snapshot()] == ["nodes", "state", "stats"]


@pytest.mark.parametrize("state", ["offline", "stopped"])
def test_time_of_going_away_is_when_the_viewer_saw_it(state: str) -> None:
    wall = Wall(now_ms=lambda: 2_000_000)
    wall.take(Message("cam-1/state", b'{"state": "online", "since": 1000}'))
    assert wall.cameras["cam-1"].since_ms == 1000
    for _ in range(2):
        wall.take(Message("cam-1/state", f'{{"state": "{state}", "since": 1000}}'.encode()))
        assert wall.cameras["cam-1"].since_ms == 2_000_000


def test_time_of_going_away_is_unknown_when_it_was_before_the_viewer() -> None:
    wall = Wall(now_ms=lambda: 2_000_000)
    wall.take(Message("cam-1/state", b'{"state": "offline", "since": 1000}'))
    assert wall.cameras["cam-1"].since_ms is None


async def test_camera_whose_retained_state_is_cleared_is_forgotten(viewer: Viewer) -> None:
    await viewer.publish("cam-1/state", {"state": "offline"})
    async with viewer.web.ws_connect(viewer.url + "/ws") as socket:
        await viewer.publish("cam-1/state", b"")
        assert (await next_of(socket, "gone"))[0]["camera"] == "cam-1"
    assert json.loads((await viewer.get("/api/cameras"))[1]) == []


def test_camera_that_was_silent_longest_makes_room() -> None:
    wall = Wall(camera_limit=2)
    for name in ("cam-1", "cam-2", "cam-1", "cam-3"):
        updates = wall.take(Message(f"{name}/state", b'{"state": "online"}'))
    assert [update.slot for update in updates] == [Slot("gone", "cam-2"), Slot("state", "cam-3")]
    assert set(wall.cameras) == {"cam-1", "cam-3"}


def test_manifests_are_bounded() -> None:
    wall = Wall(legend_limit=2)
    for digit in "123":
        manifest = {**MANIFEST, "hash": digit * 64}
        wall.take(Message(f"bundle/{digit * 64}", json.dumps(manifest).encode()))
    assert set(wall.legends) == {"2" * 64, "3" * 64}


@pytest.mark.parametrize("name", ["bundle", "worker"])
def test_no_camera_has_the_name_of_other_topics(name: str) -> None:
    wall, before = Wall(), dropped("mask")
    assert not wall.take(Message(f"{name}/mask", mask_png(camera="cam-1")))
    assert not wall.cameras
    assert dropped("mask") == before + 1


async def test_outbox_keeps_one_of_each_and_forgets_what_is_gone() -> None:
    outbox = Outbox()
    for kind, payload in [("state", "s"), ("mask", b"old"), ("preview", b"p"), ("mask", b"new")]:
        outbox.put(Update(Slot(kind, "cam-1"), payload))
    outbox.put(Update(Slot("mask", "cam-2"), b"other"))
    assert [await outbox.take(), await outbox.take(), len(outbox)] == ["s", b"new", 2]
    outbox.put(Update(Slot("gone", "cam-1"), "gone"))
    assert [await outbox.take(), await outbox.take(), len(outbox)] == [b"other", "gone", 0]


def test_feed_is_full_at_its_limit() -> None:
    feed = Feed(limit=1)
    with feed.join([]) as outbox:
        feed.send([Update(Slot("viewer", ""), "{}")])
        assert (feed.full, len(feed), len(outbox)) == (True, 1, 1)
    assert not feed.full


async def test_address_in_use_is_said_in_one_sentence(viewer: Viewer) -> None:
    port = int(viewer.url.rpartition(":")[2])
    with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}"):
        async with serve(MemoryChannel(MemoryBroker()), host="127.0.0.1", port=port):
            pass


async def test_main_serves_what_its_settings_say_until_cancelled(unused_tcp_port: int) -> None:
    settings = ViewerSettings(mqtt_url="memory://viewer-main", viewer={"port": unused_tcp_port})  # type: ignore[arg-type]
    node = asyncio.create_task(main(settings))
    async with aiohttp.ClientSession() as web, asyncio.timeout(5):
        while True:
            try:
                async with web.get(f"http://127.0.0.1:{unused_tcp_port}/readyz") as answer:
                    assert answer.status == 200
                    break
            except aiohttp.ClientConnectionError:
                await asyncio.sleep(0.02)
    node.cancel()
    with pytest.raises(asyncio.CancelledError):
        await node


async def test_retained_state_is_there_from_the_start() -> None:
    broker = MemoryBroker()
    async with MemoryChannel(broker) as camera:
        await camera.publish("cam-1/state", b'{"state": "online"}', STATE)
        async with running_viewer(broker) as viewer:
            await asyncio.sleep(0.02)
            assert json.loads((await viewer.get("/api/cameras"))[1])[0]["state"] == "online"
