"""The camera node: frames of a source -> packets on its topic; obeys what is said on its control topic.

Video -> [lane: encoder, preview] -> Uplink       control topic -> quality, pause, key

A recording has a Window too: the next frame is taken when the masks of those before have come. With a lookahead frames
wait in the encoder for the KEY after them, and leave as several packets at once.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial

import structlog

from nodes.buffer import Losses
from nodes.camera_setup import (
    open_gate,
    open_preview,
    open_rate,
    open_simple,
    open_video,
    open_window,
    opening,
    room_for,
    shape_of,
    source_missing,
)
from nodes.camera_state import described, keep_described, presence_of
from nodes.control import Control, InForce, read_control
from nodes.presence import Presence, announced, tell
from nodes.preview import Preview
from nodes.rate_control import RateControl
from nodes.service import Health, Lane, health_page, told_if_slow, until_connected
from nodes.uplink import Encoded, Uplink
from nodes.uplinks import far_side_of, open_uplink, transport_of
from nodes.window import Window
from pipeline import metrics
from pipeline.bitstream import pack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.config import CameraSettings
from pipeline.errors import BitstreamError, SourceError, TransportError
from pipeline.messages import Frame, FrameId, Kind, Packet
from pipeline.operating_points import OperatingPoint
from pipeline.scene import SceneGate, SimpleScenes
from pipeline.source_addresses import shown
from pipeline.stream_encoder import StreamEncoder
from pipeline.transport import Channel
from pipeline.video import Video

_CONNECT_S = 2.0
_REFUSALS_TOLD = 32  # in the log, one after the other
_REFUSAL_LIMIT = 200  # characters of the sentence that is said of a refused message
_KEYS_LAST_S = 30.0  # workers and the queue's server keep them for 60 s, and frames may be seconds apart

log = structlog.get_logger()


class Camera:
    """Encodes one source; encoding the next frame overlaps sending the last packet."""

    def __init__(
        self,
        name: str,
        *,
        video: Video,
        encoder: StreamEncoder,
        lane: Lane,
        channel: Channel,
        levels: frozenset[int],
        preview: Preview | None = None,
        buffer_packets: int = 4,
        fast: bool = False,
        window: Window | None = None,
        rate: RateControl | None = None,
        gate: SceneGate | None = None,
        simple: SimpleScenes | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.video = video
        self._name, self._encoder, self._lane = name, encoder, lane
        self._channel, self._levels, self._preview = channel, levels, preview
        self._window, self._rate, self._gate, self._simple, self._clock = window, rate, gate, simple, clock
        self._quality = encoder.quality  # that is asked for
        self._keys_s = clock()  # when all of a frame was last KEY
        self._previews: dict[FrameId, bytes] = {}  # of frames whose packets have not left the encoder
        self.losses = Losses("camera", camera=name)
        self._uplink = Uplink(
            channel,
            losses=self.losses,
            ask_keys=partial(lane.run, encoder.request_key),
            on_sent=self._left,
            buffer_packets=buffer_packets,
            fast=fast,
        )
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._unfit = _unfit(rated=rate is not None, fast=fast)
        self.refused: str | None = None  # why it did not do what it was told last
        self._refusals: set[str] = set()  # that were logged since it did what it was told

    @property
    def in_force(self) -> InForce:
        """What holds now of all that it can be told."""
        return InForce(
            quality=self._quality,
            pause=not self._wanted.is_set(),
            max_fps=self.video.max_fps,
            max_kbit_s=None if self._rate is None else self._rate.max_kbit_s,
        )

    async def run(self) -> None:
        """Send the source until it ends; SourceError where it is played as a recording and pictures are missing."""
        async with asyncio.TaskGroup() as tasks:
            beside = [tasks.create_task(self._obey()), tasks.create_task(self.losses.report())]
            if self._rate is not None and self._rate.asks_receipts:
                beside.append(tasks.create_task(self._hear(self._rate)))
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
        if self._window is not None and self.video.damage is not None:
            raise SourceError(self.video.damage)

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
                await self._send(await self._lane.run(self._flushed))
                return
            metrics.FRAMES.labels(self._name).inc()
            if self._rate is not None and not self._rate.admits():
                self._pass_over("rate")
                continue
            with metrics.STAGE_SECONDS.labels("encode").time():
                encoded = await self._lane.run(self._encode_frame, frame, self._rate and self._rate.point)
            if encoded is None:
                if self._rate is not None:
                    self._rate.unchanged()
                self._pass_over("unchanged")
                await self._send(await self._lane.run(self._flushed))  # those that wait would do so for long
                continue
            await self._send(encoded)

    async def _send(self, packets: Sequence[Encoded]) -> None:
        if self._window is not None:
            for encoded in packets:  # all of them first: it keeps the keys that they refer to
                self._window.add(encoded)
        for encoded in packets:
            if self._rate is not None:
                self._rate.coded(encoded.packet, len(encoded.data), self._encoder.tried)
            await self._uplink.put(encoded)

    def _pass_over(self, reason: str) -> None:
        """Not sent, and nothing is lost by it: the last mask stands."""
        metrics.drop("camera", reason)
        self.video.pass_over()

    def _encode_frame(self, frame: Frame, point: OperatingPoint | None) -> list[Encoded] | None:
        """What can leave; None where the frame shows nothing new. Runs on the lane, and so it is told the point."""
        now_s = self._clock()
        if now_s - self._keys_s > _KEYS_LAST_S:
            self._encoder.request_key()
        if self._gate is not None and not self._gate.changed(frame.image, now_s) and not self._encoder.key_asked:
            return None
        wanted = self._quality if point is None else point.quality
        level = wanted if self._simple is None else self._simple.level(wanted)
        if level != self._encoder.quality:
            self._encoder.code_keys_at(level)
        if point is not None:
            self._encoder.threshold = point.threshold
        if self._preview is not None and (preview := self._preview.picture(frame, shape_of(self.video))) is not None:
            self._previews[frame.id] = preview
        return [self._encoded(packet, now_s) for packet in self._encoder.packets(frame)]

    def _flushed(self) -> list[Encoded]:
        """The packets of frames that still wait. Runs on the lane."""
        return [self._encoded(packet, self._clock()) for packet in self._encoder.flush()]

    def _encoded(self, coded: Packet, now_s: float) -> Encoded:
        receipt = self._rate is not None and self._rate.asks_receipts
        packet = replace(coded, recorded=self._window is not None, receipt=receipt)
        encoded = Encoded(self._name, packet, pack(packet), self._previews.pop(packet.id, None))
        if encoded.stands_alone:
            self._keys_s = now_s
            if self._simple is not None:
                beside = sum(len(region.body) for region in packet.regions if region.kind is not Kind.KEY)
                self._simple.keyed(packet.quality, len(encoded.data) - beside)
        return encoded

    async def _until_wanted(self) -> str | None:
        """Wait while paused or without uplink; returns which of the two it was, if any."""
        reason = None
        while not (self._channel.connected and self._wanted.is_set()):
            if reason is None:
                why = "the uplink is not connected" if self._wanted.is_set() else "paused over the control topic"
                log.warning("frames are not sent", camera=self._name, reason=why)
            if not self._wanted.is_set():
                reason = "paused"
                await self._wanted.wait()
            else:
                reason = "uplink"
                await until_connected(self._channel)
        if reason is not None:
            log.info("frames are sent again", camera=self._name)
            if self._window is None:
                self.losses.add(reason, len(await self._lane.run(self._flushed)))  # frames that waited are of long ago
            if self._rate is not None:
                self._rate.begin_anew()
            await self._uplink.begin_anew()  # what was under way may be lost, and keys are not kept for ever
        return reason

    def _left(self, encoded: Encoded) -> None:
        if self._rate is not None:
            self._rate.left(encoded.packet.id, len(encoded.data))

    async def _hear(self, rate: RateControl) -> None:
        async for message in self._channel.subscribe(f"{self._name}/receipt"):
            try:
                rate.heard(message.payload)
            except BitstreamError as error:
                metrics.drop("camera", "receipt")
                log.debug("receipt refused", camera=self._name, reason=str(error))

    async def _obey(self) -> None:
        async for message in self._channel.subscribe(f"{self._name}/control"):
            if not message.payload:  # how a retained message is cleared
                continue
            try:
                control = read_control(message.payload, levels=self._levels, unfit=self._unfit)
            except BitstreamError as error:
                self._refuse(str(error)[:_REFUSAL_LIMIT])
                continue
            if control.model_fields_set != {"key"}:  # which workers ask for too
                self.refused = None
                self._refusals.clear()
            await self._apply(control)

    def _refuse(self, reason: str) -> None:
        """Count a control message that was refused, and say why: in the log once, until one is obeyed."""
        self.losses.add("control")
        self.refused = reason
        if reason not in self._refusals and len(self._refusals) < _REFUSALS_TOLD:
            self._refusals.add(reason)
            log.warning("control message refused", camera=self._name, reason=reason)

    async def _apply(self, control: Control) -> None:
        for command in control.model_fields_set:
            metrics.CONTROLS.labels(command).inc()
        if control.key and self._window is not None:
            self._window.want_keys()
        if control.key:
            await self._lane.run(self._encoder.request_key, control.key)
            if self._rate is not None:
                self._rate.key_lost()
        if control.quality is not None:
            await self._set_quality(control.quality)
        if "max_kbit_s" in control.model_fields_set and self._rate is not None:
            self._rate.limit(control.max_kbit_s)
            log.info("rate limited", camera=self._name, max_kbit_s=control.max_kbit_s)
        if "max_fps" in control.model_fields_set:
            self._limit_frames(control.max_fps)
        if control.pause:
            self._wanted.clear()
        elif control.pause is not None:
            self._wanted.set()

    def _limit_frames(self, max_fps: float | None) -> None:
        self.video.max_fps = max_fps
        log.info("frame rate limited", camera=self._name, max_fps=max_fps)

    async def _set_quality(self, quality: int) -> None:
        self._quality = quality
        if self._rate is None:
            await self._lane.run(setattr, self._encoder, "quality", quality)
        else:
            self._rate.cap(quality)
        log.info("quality set", camera=self._name, quality=quality)


def _unfit(*, rated: bool, fast: bool) -> dict[str, str]:
    """What a camera cannot be told, and why."""
    reasons = {} if rated else {"max_kbit_s": "max_kbit_s is for a camera that is set to control its rate (rate.*)"}
    return reasons | ({"max_fps": "max_fps is not for a recording, of which every frame is sent"} if fast else {})


async def stream(camera: Camera, *, bundle: Bundle, channel: Channel, presence: Presence, lag_frames: int = 0) -> None:
    """Run a camera, with its state and its bundle's manifest on their topics; it is said where masks come very late."""
    manifest = bundle.manifest
    with suppress(TransportError):  # later it is waited for as long as it takes
        await channel.wait_connected(_CONNECT_S)
    said = described(presence, camera)
    async with announced(channel, said) as renew, asyncio.TaskGroup() as tasks:
        # Where cameras have logins only workers may say it; where they have none the page need not wait for one.
        await tell(channel, f"bundle/{manifest.hash}", manifest.model_dump_json().encode())
        log.info("camera started", camera=presence.topic.partition("/")[0], bundle=manifest.name)
        telling = tasks.create_task(keep_described(said, camera, renew, lag_frames=lag_frames))
        await camera.run()
        telling.cancel()
        log.info("the source has ended", camera=presence.topic.partition("/")[0])


async def main(settings: CameraSettings) -> None:
    """Run one camera until its source ends; raises PipelineError, also where a recording is stopped before."""
    try:
        await _run(settings)
    except asyncio.CancelledError:
        if not settings.source.fast:
            raise
        left = f"stopped before each frame of {shown(settings.source.url)} had its mask; play it again"
        raise TransportError(f"{settings.camera.name}: {left}") from None


async def _run(settings: CameraSettings) -> None:
    bundle = load_bundle(settings.bundle or default_bundle())
    manifest, name, health = bundle.manifest, settings.camera.name, Health()
    async with (
        health_page(health, host=settings.health.host, port=settings.health.port),
        Lane("encoder") as lane,
        open_video(settings.source, width=manifest.width, height=manifest.height) as video,
    ):
        with told_if_slow(f"bundle {manifest.name}"):
            encoder = await lane.run(opening(bundle, settings.encoder))
        presence = presence_of(
            name, bundle=bundle, video=video, transport=transport_of(settings), zones=settings.camera.zones or None
        )
        rate = open_rate(settings, bundle=bundle, video=video)
        async with open_uplink(settings, presence) as channel:
            health.need_broker(channel, far_side_of(settings))
            health.need(lambda: source_missing(video))
            health.complete()
            camera = Camera(
                name,
                video=video,
                encoder=encoder,
                lane=lane,
                channel=channel,
                levels=frozenset(level.index for level in manifest.quality_levels),
                preview=open_preview(settings.preview),
                buffer_packets=room_for(settings.camera, settings.encoder),
                fast=settings.source.fast,
                window=open_window(name, settings.camera, settings.source, bundle=bundle, channel=channel),
                rate=rate,
                gate=open_gate(settings.scene, settings.source),
                simple=open_simple(settings.scene, bundle),
            )
            lag_frames = 0 if settings.source.fast else settings.encoder.lookahead  # nobody waits for a recording's
            await stream(camera, bundle=bundle, channel=channel, presence=presence, lag_frames=lag_frames)
