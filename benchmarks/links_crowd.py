"""Many cameras in one process, for `links_load`: packets that were encoded before go out over WebRTC, stamped now.

    python benchmarks/links_crowd.py webrtc+http://HOST:PORT BUNDLE CAMERAS FPS SECONDS

Each camera has a connection of its own and begins at another place of the video, and at another time, so that each
moment has as many KEYs as the video on average, as with cameras that see different streets. At the end it writes one
line of JSON: how many packets each camera sent, and how many the channel did not take.
"""

import asyncio
import itertools
import json
import sys
import time
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nodes.service import now_ms, set_up_logging
from pipeline.bitstream import pack
from pipeline.bundle import load_bundle
from pipeline.config import EncoderSection
from pipeline.errors import TransportError
from pipeline.key_policies import key_policy
from pipeline.messages import Frame, FrameId, Kind, Packet
from pipeline.sources import fit, open_source
from pipeline.transport.webrtc import WebRtcChannel
from pipeline.video import sample_path
from pipeline.video_encoder import open_video_encoder

_FRAMES, _CONNECT_S = 150, 30.0


@dataclass(slots=True)
class Sent:
    """What one camera sent: packets, and those that the channel refused."""

    packets: int = 0
    refused: int = 0


def name_of(camera: int) -> str:
    """What the n-th camera is called."""
    return f"crowd-{camera}"


def encode(folder: Path) -> list[Packet]:
    """The packets of the sample, as a camera makes them with its usual settings."""
    bundle, usual = load_bundle(folder), EncoderSection()
    policy = key_policy(key_interval=usual.key_interval, threshold=usual.threshold)
    encoder = open_video_encoder(bundle, engine="auto", threads=1, policy=policy, grid="1x1")
    size = (bundle.manifest.width, bundle.manifest.height)
    with open_source(str(sample_path()), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        images = [fit(one.image, size) for one in itertools.islice(opened.pictures, _FRAMES)]
    return [encoder.encode(Frame(FrameId(0, number), 0, image)) for number, image in enumerate(images)]


def starts_of(packets: Sequence[Packet], cameras: int) -> list[int]:
    """Where in the video each camera begins: as far from the next one as it is long, at the last KEY until there."""
    keys = [place for place, packet in enumerate(packets) if packet.regions[0].kind is Kind.KEY]
    return [max(key for key in keys if key <= camera * len(packets) // cameras) for camera in range(cameras)]


async def play(channel: WebRtcChannel, name: str, packets: Iterable[Packet], times: Iterable[float]) -> Sent:
    """Send a packet at each of these times of the monotonic clock."""
    sent = Sent()
    for sequence, (made, at_s) in enumerate(zip(packets, times, strict=False)):
        await asyncio.sleep(max(0.0, at_s - time.monotonic()))
        packet = replace(made, id=FrameId(7, sequence), captured_ms=now_ms())
        try:
            await channel.publish(f"{name}/latent", pack(packet))
            sent.packets += 1
        except TransportError:
            sent.refused += 1
    return sent


async def crowd(url: str, packets: Sequence[Packet], *, cameras: int, fps: float, seconds: float) -> list[Sent]:
    """Connect all cameras, then let all of them play."""
    async with AsyncExitStack() as stack:
        names = [name_of(camera) for camera in range(cameras)]
        channels = [await stack.enter_async_context(WebRtcChannel(url, camera=name)) for name in names]
        for channel in channels:
            await channel.wait_connected(_CONNECT_S)
        began_s, step_s = time.monotonic() + 1, 1 / fps
        playing = []
        async with asyncio.TaskGroup() as tasks:
            for camera, start in enumerate(starts_of(packets, cameras)):
                first_s = began_s + camera * step_s / cameras
                times = [first_s + number * step_s for number in range(round(seconds * fps))]
                round_and_round = itertools.cycle((*packets[start:], *packets[:start]))
                playing.append(tasks.create_task(play(channels[camera], names[camera], round_and_round, times)))
        return [task.result() for task in playing]


def main(url: str, folder: str, cameras: str, fps: str, seconds: str) -> None:
    """Play, and tell what was sent."""
    set_up_logging(level="warning", format="json")
    sent = asyncio.run(crowd(url, encode(Path(folder)), cameras=int(cameras), fps=float(fps), seconds=float(seconds)))
    print(json.dumps([asdict(one) for one in sent]))


if __name__ == "__main__":
    main(*sys.argv[1:])
