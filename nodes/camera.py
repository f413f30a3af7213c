"""The camera node: frames of a source -> packets on its topic; obeys what is said on its control topic.

Video -> [lane: VideoEncoder, preview] -> Uplink       control topic -> quality, pause, key

A recording has a Window too: the next frame is taken when the masks of those before have come.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog

from nodes.buffer import Losses
from nodes.control import Control, read_control
from nodes.preview import Preview
from nodes.service import Health, Lane, Presence, announced, health_page, now_ms, tell, until_connected
from nodes.uplink import Encoded, Uplink
from nodes.window import Window
from pipeline import metrics
from pipeline.bitstream import pack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.config import CameraSection, CameraSettings, EncoderSection, PreviewSection, SourceSection
from pipeline.errors import BitstreamError, TransportError
from pipeline.messages import Frame
from pipeline.sources import Origin, kind_of
from pipeline.transport import Channel, open_channel
from pipeline.video import Video
from pipeline.video_encoder import VideoEncoder, key_policy, open_video_encoder

_CONNECT_S = 2.0
_KEYS_LAST_S = 30.0  # workers and the queue's server keep them for 60 s, and frames may be seconds apart

log = structlog.get_logger()


class Camera:
    """Encodes one source; encoding the next frame overlaps sending the last packet."""

    def __init__(
        self,
        name: str,
        *,
        video: Video,
        encoder: VideoEncoder,
        lane: Lane,
        channel: Channel,
        levels: frozenset[int],
        preview: Preview | None = None,
        buffer_packets: int = 4,
        fast: bool = False,
        window: Window | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.video = video
        self._name, self._encoder, self._lane = name, encoder, lane
        self._channel, self._levels, self._preview = channel, levels, preview
        self._window, self._clock = window, clock
        self._keys_s = clock()  # when all of a frame was last KEY
        self.losses = Losses("camera", camera=name)
        self._uplink = Uplink(
            channel,
            losses=self.losses,
            ask_keys=partial(lane.run, encoder.request_key),
            buffer_packets=buffer_packets,
            fast=fast,
        )
        self._wanted = asyncio.Event()
        self._wanted.set()

    async def run(self) -> None:
        """Send the source until it ends."""
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._obey()), tasks.create_task(self.losses.report())]
            sending = tasks.create_task(self._uplink.run())
            if self._window is not None:
                beside.append(tasks.create_task(self._window.run(self._uplink.put)))
            await self._encode()
            if self._window is not None:
                await self._window.until_answered()
            self._uplink.close()
            await sending
            for task in beside:
                task.cancel()

    async def _encode(self) -> None:
        """Frames -> buffer; a frame is taken only when its packet can leave, until then the newest waits."""
        frames, skipped = aiter(self.video), 0
        while True:
            if self._window is not None:
                await self._window.until_free()
            reason = await self._until_wanted()
            frame = await anext(frames, None)
            self.losses.add(reason or "busy", self.video.skipped - skipped)
            skipped = self.video.skipped
            if frame is None:
                return
            metrics.FRAMES.labels(self._name).inc()
            with metrics.STAGE_SECONDS.labels("encode").time():
                encoded = await self._lane.run(self._encode_frame, frame)
            if self._window is not None:
                self._window.add(encoded)
            await self._uplink.put(encoded)

    def _encode_frame(self, frame: Frame) -> Encoded:
        """Runs on the lane."""
        now_s = self._clock()
        if now_s - self._keys_s > _KEYS_LAST_S:
            self._encoder.request_key()
        packet = replace(self._encoder.encode(frame), recorded=self._window is not None)
        preview = self._preview.picture(frame) if self._preview else None
        encoded = Encoded(self._name, packet, pack(packet), preview)
        if encoded.stands_alone:
            self._keys_s = now_s
        return encoded

    async def _until_wanted(self) -> str | None:
        """Wait while paused or without uplink; returns which of the two it was, if any."""
        reason = None
        while not (self._channel.connected and self._wanted.is_set()):
            if reason is None:
                why = "no connection to the broker" if self._wanted.is_set() else "paused over the control topic"
                log.warning("frames are not sent", camera=self._name, reason=why)
            if not self._wanted.is_set():
                reason = "paused"
                await self._wanted.wait()
            else:
                reason = "uplink"
                await until_connected(self._channel)
        if reason is not None:
            log.info("frames are sent again", camera=self._name)
            await self._uplink.begin_anew()  # what was under way may be lost, and keys are not kept for ever
        return reason

    async def _obey(self) -> None:
        async for message in self._channel.subscribe(f"{self._name}/control"):
            try:
                control = read_control(message.payload, levels=self._levels)
            except BitstreamError as error:
                self.losses.add("control")
                log.debug("control message ignored", camera=self._name, reason=str(error))
                continue
            await self._apply(control)

    async def _apply(self, control: Control) -> None:
        for command in control.model_fields_set:
            metrics.CONTROLS.labels(command).inc()
        if control.key and self._window is not None:
            self._window.want_keys()
        if control.key:
            await self._lane.run(self._encoder.request_key, control.key)
        if control.quality is not None:
            await self._lane.run(setattr, self._encoder, "quality", control.quality)
            log.info("quality set", camera=self._name, quality=control.quality)
        if control.pause:
            self._wanted.clear()
        elif control.pause is not None:
            self._wanted.set()


def open_video(source: SourceSection, *, width: int, height: int) -> Video:
    """The video that the settings name, to be entered."""
    return Video(
        source.url,
        width=width,
        height=height,
        loop=source.loop,
        fast=source.fast,
        fps=source.fps,
        start_s=source.start_s,
        mirror=source.mirror,
        timeout_s=source.timeout_s,
        retry_max_s=source.retry_max_s,
        decode_threads=source.decode_threads,
    )


def open_window(
    name: str, settings: CameraSection, source: SourceSection, *, bundle: Bundle, channel: Channel
) -> Window | None:
    """The window of a camera whose source is played as a recording."""
    if not source.fast or kind_of(source.url) in ("server", "device"):
        return None
    return Window(
        name,
        channel,
        masks=bundle.has_graph("decode"),
        packets=settings.window_packets,
        answer_s=settings.answer_s,
        tries=settings.tries,
    )


def opening(bundle: Bundle, encoder: EncoderSection) -> Callable[[], VideoEncoder]:
    """What opens the encoder that the settings ask for."""
    return partial(
        open_video_encoder,
        bundle,
        engine=encoder.engine,
        threads=encoder.threads,
        quality=encoder.quality,
        policy=key_policy(
            key_interval=encoder.key_interval,
            threshold=encoder.threshold if encoder.price is None else None,
            price=encoder.price,
        ),
        grid=encoder.grid,
    )


def open_preview(preview: PreviewSection) -> Preview | None:
    """The preview that the settings name, if it is on."""
    if not preview.enabled:
        return None
    return Preview(max_fps=preview.max_fps, max_width=preview.max_width, jpeg_quality=preview.jpeg_quality)


def presence_of(name: str, *, bundle: Bundle, video: Video, transport: str) -> Presence:
    """What the camera says of itself, as far as it is known now."""
    manifest = bundle.manifest
    presence = Presence(
        topic=f"{name}/state",
        bundle=manifest.hash,
        width=manifest.width,
        height=manifest.height,
        transport=transport,
        since=now_ms(),
    )
    return presence if video.origin is None else with_source(presence, video.origin)


def with_source(presence: Presence, origin: Origin) -> Presence:
    """The same, with what the source gives."""
    return replace(presence, fps=origin.fps, source_width=origin.width, source_height=origin.height)


async def stream(camera: Camera, *, bundle: Bundle, channel: Channel, presence: Presence) -> None:
    """Run a camera, with its state and its bundle's manifest on their topics."""
    manifest = bundle.manifest
    with suppress(TransportError):  # later it is waited for as long as it takes
        await channel.wait_connected(_CONNECT_S)
    async with announced(channel, presence) as renew, asyncio.TaskGroup() as tasks:
        # Where cameras have logins only workers may say it; where they have none the page need not wait for one.
        await tell(channel, f"bundle/{manifest.hash}", manifest.model_dump_json().encode())
        log.info("camera started", camera=presence.topic.partition("/")[0], bundle=manifest.name)
        learning = tasks.create_task(_tell_source(camera.video, presence, renew))
        await camera.run()
        learning.cancel()
        log.info("the source has ended", camera=presence.topic.partition("/")[0])


async def _tell_source(video: Video, presence: Presence, renew: Callable[[Presence], Awaitable[None]]) -> None:
    """Complete the state as soon as a source that was waited for is known."""
    if presence.fps is None and (origin := await video.opened()) is not None:
        await renew(with_source(presence, origin))


async def main(settings: CameraSettings) -> None:
    """Run one camera until its source ends; raises PipelineError."""
    bundle = load_bundle(settings.bundle or default_bundle())
    manifest, name, health = bundle.manifest, settings.camera.name, Health()
    async with (
        health_page(health, host=settings.health.host, port=settings.health.port),
        Lane("encoder") as lane,
        open_video(settings.source, width=manifest.width, height=manifest.height) as video,
    ):
        encoder = await lane.run(opening(bundle, settings.encoder))
        transport = settings.mqtt_url.partition(":")[0]
        presence = presence_of(name, bundle=bundle, video=video, transport=transport)
        root = settings.mqtt.root
        async with open_channel(
            settings.mqtt_url, root=root, will=presence.will, client_id=presence.client_id(root)
        ) as channel:
            health.need_broker(channel)
            health.need(lambda: None if video.origin else "waiting for the source")
            health.complete()
            camera = Camera(
                name,
                video=video,
                encoder=encoder,
                lane=lane,
                channel=channel,
                levels=frozenset(level.index for level in manifest.quality_levels),
                preview=open_preview(settings.preview),
                buffer_packets=settings.camera.buffer_packets,
                fast=settings.source.fast,
                window=open_window(name, settings.camera, settings.source, bundle=bundle, channel=channel),
            )
            await stream(camera, bundle=bundle, channel=channel, presence=presence)
