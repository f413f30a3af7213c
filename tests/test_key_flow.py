"""Key and flow from the camera to the mask, in one process: most frames are WARPs, every one of them gets its mask."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack

import numpy as np
import pytest

from nodes.camera import Camera
from nodes.camera_setup import open_video
from nodes.camera_setup import opening as opening_encoder
from nodes.gateway import Gateway
from nodes.service import Health, Lane
from nodes.worker import opening, work
from pipeline.bitstream import unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.config import DecoderSection, EncoderSection, SourceSection, WorkerSection
from pipeline.mask_image import unpack_mask
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.messages import Mask
from pipeline.transport import Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel

LIMIT_S = 120
FRAMES = 40
NAMES = ("cam-0", "cam-1", "cam-2", "cam-3")
SOURCE = SourceSection(url="sample", start_s=12 - FRAMES / 25, fast=True)
EVERY_FRAME = EncoderSection(engine="onnxruntime", threads=1, key_interval=1, threshold=None)


async def play(name: str, encoder: EncoderSection, bundle: Bundle, broker: MemoryBroker) -> None:
    """One camera plays the end of the sample."""
    manifest = bundle.manifest
    async with (
        Lane(name) as lane,
        open_video(SOURCE, width=manifest.width, height=manifest.height) as video,
        MemoryChannel(broker) as channel,
    ):
        opened = await lane.run(opening_encoder(bundle, encoder))
        camera = Camera(name, video=video, encoder=opened, lane=lane, channel=channel, levels=frozenset(), fast=True)
        await camera.run()


async def played(bundle: Bundle, *encoders: EncoderSection) -> dict[str, list[bytes]]:
    """What came on the latent and mask topics of cameras with these settings, once there are as many as frames."""
    broker, queued, came = MemoryBroker(), MemoryQueueState(), asyncio.Queue[Message]()
    settings = WorkerSection(deadline_ms=0, labels="off")
    async with AsyncExitStack() as stack, asyncio.timeout(LIMIT_S):
        gateway, worker, reader = [await stack.enter_async_context(MemoryChannel(broker)) for _ in range(3)]
        putting = await stack.enter_async_context(MemoryWorkQueue(queued))
        claiming = await stack.enter_async_context(MemoryWorkQueue(queued, "one"))
        lane = await stack.enter_async_context(Lane("decoder"))
        decoder = await lane.run(opening(bundle, settings, DecoderSection(engine="onnxruntime", threads=1)))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        working = work(
            *("one", settings),
            bundle=bundle,
            decoder=decoder,
            lane=lane,
            queue=claiming,
            channel=worker,
            health=Health(),
        )
        beside = [tasks.create_task(each) for each in (working, Gateway(gateway, putting).run(), take(reader, came))]
        await asyncio.gather(*(play(name, each, bundle, broker) for name, each in zip(NAMES, encoders, strict=True)))
        topics: dict[str, list[bytes]] = {}
        while sum(map(len, topics.values())) < 2 * FRAMES * len(encoders):
            message = await came.get()
            topics.setdefault(message.topic, []).append(message.payload)
        for task in beside:
            task.cancel()
    return topics


async def take(reader: MemoryChannel, came: "asyncio.Queue[Message]") -> None:
    async for message in reader.subscribe("+/latent", "+/mask"):
        came.put_nowait(message)


def kinds_of(packets: Sequence[bytes]) -> str:
    return "".join(unpack(packet).regions[0].kind.name[0] for packet in packets)


def masks_of(pictures: Sequence[bytes]) -> list[Mask]:
    return [unpack_mask(picture)[0] for picture in pictures]


@pytest.fixture(scope="module")
def topics() -> dict[str, list[bytes]]:
    """Of cameras that send KEYs alone, one in five, as many as the default, and one in five with a lookahead."""
    interval = EVERY_FRAME.model_copy(update={"key_interval": 5})
    default = EncoderSection(engine="onnxruntime", threads=1)
    lookahead = interval.model_copy(update={"lookahead": 4})
    return asyncio.run(played(load_bundle(default_bundle()), EVERY_FRAME, interval, default, lookahead))


def agreements_of(topics: dict[str, list[bytes]], name: str) -> list[float]:
    """Of each frame, in their order, with the mask of a KEY."""
    masks, fresh = (masks_of(topics[f"{camera}/mask"]) for camera in (name, "cam-0"))
    assert [mask.id for mask in masks] == [unpack(packet).id for packet in topics[f"{name}/latent"]]
    return [float(np.mean(one.classes == other.classes)) for one, other in zip(fresh, masks, strict=True)]


def test_warps_save_most_of_the_bits_and_every_frame_has_nearly_the_mask_of_a_key(
    topics: dict[str, list[bytes]],
) -> None:
    kinds = {name: kinds_of(topics[f"{name}/latent"]) for name in NAMES}
    assert kinds["cam-0"] == "K" * FRAMES
    assert kinds["cam-1"] == "KWWWW" * (FRAMES // 5)
    assert kinds["cam-2"][0] == "K" and kinds["cam-2"].count("W") > FRAMES / 2

    sizes = {name: sum(map(len, topics[f"{name}/latent"])) for name in NAMES}
    assert sizes["cam-1"] < 0.4 * sizes["cam-0"]
    assert sizes["cam-2"] < 0.5 * sizes["cam-0"]

    for name in NAMES[:3]:
        agreement = agreements_of(topics, name)
        assert np.mean(agreement) > 0.96 and min(agreement) > 0.93
        assert all(one == 1 for one, kind in zip(agreement, kinds[name], strict=True) if kind == "K")


def test_with_a_lookahead_masks_between_the_same_keys_are_nearer_to_those_of_keys(
    topics: dict[str, list[bytes]],
) -> None:
    packets = [unpack(packet) for packet in topics["cam-3/latent"]]
    kinds = ["".join(one.kind.name[0] for one in packet.regions) for packet in packets]
    assert kinds == ["K", *["KWB", "WB", "WB", "WB", "B"] * (FRAMES // 5 - 1), *"WWWW"]
    warps, between = (np.array(agreements_of(topics, name)) for name in ("cam-1", "cam-3"))
    assert (between[::5] == 1).all()
    assert between[:-4].mean() > warps[:-4].mean() + 0.002
    assert between.min() > 0.93
    sizes = {name: sum(map(len, topics[f"{name}/latent"])) for name in NAMES}
    assert sizes["cam-3"] < 1.1 * sizes["cam-1"]
