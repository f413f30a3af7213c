"""The demo: cameras, gateway, worker and viewer in one process, on the memory channel and queue; no servers."""

import asyncio
import os
import sys
import webbrowser
from collections.abc import Mapping

import structlog

from nodes import viewer
from nodes.camera import Camera, stream
from nodes.camera_setup import open_preview, open_video, open_window, room_for
from nodes.camera_setup import opening as opening_encoder
from nodes.camera_state import presence_of
from nodes.gateway import Gateway
from nodes.gateway import presence_of as gateway_presence
from nodes.presence import announced
from nodes.service import Health, Lane
from nodes.worker import opening, work
from nodes.worker import presence_of as worker_presence
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.config import CameraSection, DemoSettings, SourceSection
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.source_addresses import kind_of
from pipeline.transport.memory import MemoryBroker, MemoryChannel

_NAME = "demo"
_SHIFT_S = 0.7

log = structlog.get_logger()


async def main(settings: DemoSettings) -> None:
    """Run everything until cancelled, or until the cameras' source ends; raises PipelineError."""
    bundle = load_bundle(settings.bundle or default_bundle())
    broker, queued = MemoryBroker(), MemoryQueueState()
    async with (
        MemoryWorkQueue(queued) as putting,
        MemoryWorkQueue(queued, _NAME) as claiming,
        MemoryChannel(broker) as to_gateway,
        MemoryChannel(broker) as to_worker,
        MemoryChannel(broker) as to_viewer,
        Lane("decoder") as lane,
        viewer.page_of(settings.viewer, to_viewer) as address,
        announced(to_gateway, gateway_presence(_NAME, transport="memory")),
        announced(to_worker, worker_presence(_NAME, bundle=bundle, transport="memory")),
        asyncio.TaskGroup() as tasks,
    ):
        decoder = await lane.run(opening(bundle, settings.worker, settings.decoder))
        working = work(
            _NAME,
            settings.worker,
            bundle=bundle,
            decoder=decoder,
            lane=lane,
            queue=claiming,
            channel=to_worker,
            health=Health(),
        )
        beside = [tasks.create_task(each) for each in (working, Gateway(to_gateway, putting).run())]
        log.info("the demo is on this page, Ctrl-C ends it", address=address)
        await _open_page(address, wanted=settings.demo.open_page)
        async with asyncio.TaskGroup() as cameras:
            for number, source in enumerate(vary(settings.source, cameras=settings.demo.cameras), start=1):
                cameras.create_task(_play(f"cam-{number}", source, settings, bundle, broker))
        for task in beside:
            task.cancel()


def vary(source: SourceSection, *, cameras: int) -> list[SourceSection]:
    """One source per camera: every second one mirrored, each pair later; a live source can be opened only once."""
    if kind_of(source.url) in ("server", "device"):
        return [source]
    return [
        source.model_copy(
            update={
                "mirror": source.mirror != bool(number % 2),
                "start_s": source.start_s + number // 2 * _SHIFT_S,
            }
        )
        for number in range(cameras)
    ]


def has_desktop(environment: Mapping[str, str], *, terminal: bool) -> bool:
    """Whether a person sits here who would see a page open."""
    return terminal and bool(environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY"))


async def _open_page(address: str, *, wanted: bool) -> None:
    """Open the page for a person at a desktop."""
    if wanted and has_desktop(os.environ, terminal=sys.stderr.isatty()):
        await asyncio.to_thread(webbrowser.open, address)


async def _play(name: str, source: SourceSection, settings: DemoSettings, bundle: Bundle, broker: MemoryBroker) -> None:
    """Run one camera."""
    manifest = bundle.manifest
    async with (
        Lane(name) as lane,
        open_video(source, width=manifest.width, height=manifest.height) as video,
    ):
        presence = presence_of(name, bundle=bundle, video=video, transport="memory")
        encoder = await lane.run(opening_encoder(bundle, settings.encoder))
        async with MemoryChannel(broker, will=presence.will) as channel:
            camera = Camera(
                name,
                video=video,
                encoder=encoder,
                lane=lane,
                channel=channel,
                levels=frozenset(level.index for level in manifest.quality_levels),
                preview=open_preview(settings.preview),
                buffer_packets=room_for(CameraSection(), settings.encoder),
                fast=source.fast,
                window=open_window(name, CameraSection(name=name), source, bundle=bundle, channel=channel),
            )
            await stream(camera, bundle=bundle, channel=channel, presence=presence)
