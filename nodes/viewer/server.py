"""The viewer's HTTP side: the page, its live feed, a small API, and what every node answers about itself."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import WSCloseCode, web

from nodes.reports import State
from nodes.service import Health, health_routes
from nodes.viewer.access import Access
from nodes.viewer.feed import Feed, Outbox
from nodes.viewer.state import CameraView, Update, Wall, viewer_update
from pipeline.transport import Channel

_STATIC = Path(__file__).parent / "static"
_PAGES = {
    "/": ("index.html", "text/html"),
    "/viewer.css": ("viewer.css", "text/css"),
    "/viewer.js": ("viewer.js", "text/javascript"),
    "/card.js": ("card.js", "text/javascript"),
    "/picture.js": ("picture.js", "text/javascript"),
    "/rates.js": ("rates.js", "text/javascript"),
    "/regions.js": ("regions.js", "text/javascript"),
    "/zones.js": ("zones.js", "text/javascript"),
    "/icon.svg": ("icon.svg", "image/svg+xml"),
}
_HEALTH = {"/healthz", "/readyz", "/metrics"}  # as open as those of other nodes
_PING_S = 15.0
_SEND_TIMEOUT_S = 10.0
_INCOMING_LIMIT_BYTES = 1024
_SEND_BUFFER_BYTES = 128 << 10  # small, so that what waits, waits in the outbox where newer replaces older

_OF_THE_STATE = {"source", "source_width", "source_height", "fps", "transport", "zones"}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """What is answered on each route."""

    def __init__(self, wall: Wall, feed: Feed, *, channel: Channel, access: Access, now_ms: Callable[[], int]) -> None:
        self._wall, self._feed, self._access = wall, feed, access
        self._channel, self._now_ms = channel, now_ms
        self._health = Health()
        self._health.need_broker(channel)
        self._health.complete()
        self._browsers: set[web.WebSocketResponse] = set()

    def application(self) -> web.Application:
        """The application with all its routes; it closes the live feeds when it is shut down."""
        app = web.Application(client_max_size=_INCOMING_LIMIT_BYTES, middlewares=[self._check_host])
        app.on_response_prepare.append(self._add_headers)
        app.on_shutdown.append(self._say_goodbye)
        app.add_routes(
            [
                *(web.get(path, _static_file(*file)) for path, file in _PAGES.items()),
                web.get("/ws", self.live),
                web.get("/api/{kind:gateway|worker}s", self.nodes),
                web.get("/api/bundles", self.bundles),
                web.get("/api/cameras", self.cameras),
                web.get("/api/cameras/{camera}/mask.png", self.mask),
                web.get("/api/cameras/{camera}/preview.jpg", self.preview),
                web.get("/api/cameras/{camera}/labels", self.labels),
                web.get("/api/cameras/{camera}/stats", self.stats),
                *health_routes(self._health),
            ]
        )
        return app

    def about_viewer(self) -> Update:
        """What browsers are told of the viewer itself."""
        return viewer_update(now_ms=self._now_ms(), connected=self._channel.connected)

    async def nodes(self, request: web.Request) -> web.Response:
        """The gateways or workers that are online, by name; without the broker that is not known."""
        if not self._channel.connected:
            raise web.HTTPServiceUnavailable(text="the viewer is not connected to the broker and cannot tell\n")
        kind = request.match_info["kind"]
        known = sorted(self._wall.nodes[kind].items())
        return web.json_response([{kind: name, **_node_facts(state)} for name, state in known])

    async def bundles(self, request: web.Request) -> web.Response:
        """What the bundles that were heard of call and colour their classes, in the order of their indexes."""
        return web.json_response([legend.model_dump() for legend in self._wall.legends.values()])

    async def cameras(self, request: web.Request) -> web.Response:
        """Every camera that was heard of, by name, with its newest facts."""
        views = sorted(self._wall.cameras.values(), key=lambda camera: camera.name)
        return web.json_response([_facts(view, now_ms=self._now_ms()) for view in views])

    async def mask(self, request: web.Request) -> web.Response:
        """The newest mask of a camera, as published."""
        mask = self._camera(request).mask
        if mask is None:
            raise web.HTTPNotFound(text="this camera has sent no mask yet\n")
        answer = web.Response(body=mask.png, content_type="image/png", headers=self._access.picture_headers)
        answer.last_modified = mask.captured_ms / 1000
        return answer

    async def preview(self, request: web.Request) -> web.Response:
        """The newest preview of a camera, where it publishes some."""
        preview = self._camera(request).preview
        if preview is None:
            raise web.HTTPNotFound(text="this camera has sent no preview; it does with preview.enabled\n")
        return web.Response(body=preview.jpeg, content_type="image/jpeg", headers=self._access.picture_headers)

    async def labels(self, request: web.Request) -> web.Response:
        """The newest labels of a camera."""
        labels = self._camera(request).labels
        if labels is None:
            raise web.HTTPNotFound(text="this camera has sent no labels yet\n")
        return web.json_response(text=labels.model_dump_json())

    async def stats(self, request: web.Request) -> web.Response:
        """The newest stats of a camera, and when they came."""
        view = self._camera(request)
        if view.stats is None:
            raise web.HTTPNotFound(text="this camera has sent no stats yet\n")
        return web.json_response({**view.stats.model_dump(), "at_ms": view.counted_ms})

    async def live(self, request: web.Request) -> web.WebSocketResponse:
        """The live feed of one browser, until either side goes away."""
        if not self._access.admits(request):
            raise web.HTTPForbidden(text="the live feed is for this viewer's own page\n")
        if self._feed.full:
            raise web.HTTPServiceUnavailable(text="as many browsers as allowed are looking on; close one\n")
        browser = web.WebSocketResponse(
            heartbeat=_PING_S, max_msg_size=_INCOMING_LIMIT_BYTES, compress=False, timeout=1.0
        )
        # First a place, then the answer: many that come at once are no more than are allowed.
        with self._feed.join([self.about_viewer(), *self._wall.snapshot()]) as outbox:
            await browser.prepare(request)
            _keep_backlog_here(request)
            self._browsers.add(browser)
            try:
                async with asyncio.TaskGroup() as tasks:
                    sending = tasks.create_task(_send(browser, outbox, request))
                    async for _ in browser:  # answers pings and sees the end; nothing else is expected
                        pass
                    sending.cancel()
            finally:
                self._browsers.discard(browser)
        return browser

    @web.middleware
    async def _check_host(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path not in _HEALTH and not self._access.answers_to(request):
            host = request.host
            raise web.HTTPForbidden(
                text=f"this viewer listens on its own machine only and does not know the name {host}: "
                f"if a proxy leads here, put its origin, https://{host} or http://{host}, in viewer.origins\n"
            )
        return await handler(request)

    async def _add_headers(self, request: web.Request, response: web.StreamResponse) -> None:
        for name, text in self._access.headers.items():
            response.headers.setdefault(name, text)
        response.headers.setdefault("Cache-Control", "no-store")

    async def _say_goodbye(self, app: web.Application) -> None:
        for browser in list(self._browsers):
            await browser.close(code=WSCloseCode.GOING_AWAY, message=b"the viewer stops")

    def _camera(self, request: web.Request) -> CameraView:
        camera = self._wall.cameras.get(request.match_info["camera"])
        if camera is None:
            raise web.HTTPNotFound(text="no such camera\n")
        return camera


async def _send(browser: web.WebSocketResponse, outbox: Outbox, request: web.Request) -> None:
    """Send what the outbox holds; a browser that takes nothing for a while is cut off."""
    try:
        while True:
            payload = await outbox.take()
            async with asyncio.timeout(_SEND_TIMEOUT_S):
                if isinstance(payload, str):
                    await browser.send_str(payload)
                else:
                    await browser.send_bytes(payload)
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()


def _static_file(name: str, content_type: str) -> Handler:
    headers = {"Content-Type": f"{content_type}; charset=utf-8", "Cache-Control": "no-cache"}

    async def answer(request: web.Request) -> web.StreamResponse:
        return web.FileResponse(_STATIC / name, headers=headers)

    return answer


def _keep_backlog_here(request: web.Request) -> None:
    if request.transport is None:
        return
    connection = request.transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)


def _node_facts(state: State) -> dict[str, object]:
    return {"bundle": state.bundle, "transport": state.transport, "since_ms": state.since}


def _facts(view: CameraView, *, now_ms: int) -> dict[str, object]:
    mask, state = view.mask, view.state
    return {
        "camera": view.name,
        "state": state.state if state else None,
        "since_ms": view.since_ms,
        **(state.model_dump(include=_OF_THE_STATE) if state else dict.fromkeys(_OF_THE_STATE)),
        "control": state.control.model_dump() if state and state.control else None,
        "refused": state.refused if state else None,
        "bundle": mask.bundle if mask else None,
        "width": mask.width if mask else None,
        "height": mask.height if mask else None,
        "epoch": mask.epoch if mask else None,
        "sequence": mask.sequence if mask else None,
        "captured_ms": mask.captured_ms if mask else None,
        "regions": (mask.regions or None) if mask else None,
        "age_ms": max(0, now_ms - mask.captured_ms) if mask else None,
        "stats": view.stats.model_dump() if view.stats else None,
        "stats_at_ms": view.counted_ms,
    }
