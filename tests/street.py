"""The sample's street as a camera sees it and as the packets it becomes, for tests of keys over several workers."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray

from pipeline.bidirectional import open_stream_encoder
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, Outputs, open_decoder
from pipeline.key_policies import at_interval
from pipeline.keys import KeyBuffers
from pipeline.messages import Decoded, Frame, FrameId, Packet
from pipeline.sources import fit, open_source
from pipeline.video import sample_path
from pipeline.video_encoder import VideoEncoder, open_video_encoder

INTERVAL = 5  # one KEY in so many frames
EPOCH = 7
PICTURES = (60, 72)  # of the sample; before them the camera stands still


@cache
def bundle() -> Bundle:
    return load_bundle(default_bundle())


@cache
def pictures() -> Sequence[NDArray[np.uint8]]:
    """Half a second of a moving camera, RGB (H, W, 3)."""
    size = (bundle().manifest.width, bundle().manifest.height)
    with open_source(str(sample_path()), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        return [fit(picture.image, size) for picture in itertools.islice(opened.pictures, *PICTURES)]


@dataclass(slots=True, eq=False)
class StreetCamera:
    """Encodes the pictures to and fro, for ever; a KEY every INTERVAL frames and when asked."""

    encoder: VideoEncoder
    sequence: int = 0
    packets: list[Packet] = field(default_factory=list)

    def next(self, captured_ms: int = 0) -> Packet:
        """The next packet."""
        images = [*pictures(), *reversed(pictures())]
        frame = Frame(FrameId(EPOCH, self.sequence), captured_ms, images[self.sequence % len(images)])
        self.sequence += 1
        self.packets.append(self.encoder.encode(frame))
        return self.packets[-1]


def camera() -> StreetCamera:
    encoder = open_video_encoder(bundle(), engine="onnxruntime", threads=1, policy=at_interval(INTERVAL))
    return StreetCamera(encoder)


@cache
def packets(count: int) -> Sequence[Packet]:
    """The first packets of a camera, a KEY at every INTERVAL-th."""
    street = camera()
    return [street.next() for _ in range(count)]


@cache
def packets_between(count: int) -> Sequence[Packet]:
    """The same, each frame between two KEYs told from both sides, the later one ahead of its frame."""
    policy, waiting = at_interval(INTERVAL), INTERVAL - 1
    encoder = open_stream_encoder(bundle(), engine="onnxruntime", threads=1, policy=policy, lookahead=waiting)
    images = itertools.cycle([*pictures(), *reversed(pictures())])
    frames = (Frame(FrameId(EPOCH, sequence), 0, next(images)) for sequence in range(count))
    made = [packet for frame in frames for packet in encoder.packets(frame)]
    return [*made, *encoder.flush()]


def moved(packet: Packet, *, by: int = 0, epoch: int = EPOCH, captured_ms: int | None = None) -> Packet:
    """The packet as one of a later time; a stream whose packets are all moved so is a stream again."""
    at_ms = packet.captured_ms if captured_ms is None else captured_ms
    return replace(packet, id=FrameId(epoch, packet.id.sequence + by), captured_ms=at_ms)


@cache
def _opened() -> Decoder:
    return open_decoder(bundle(), engine="onnxruntime", threads=1)


def decoder() -> Decoder:
    """A decoder that has seen nothing; all of them share one session, so keep them on one thread."""
    return Decoder(bundle(), _opened()._session, keys=KeyBuffers[Outputs]())


def classes_of(made: Sequence[Packet]) -> dict[int, NDArray[np.uint8]]:
    """The masks (H, W) of the packets by sequence, as a decoder makes them that gets every one, in order."""
    undisturbed, found = decoder(), {}
    for packet in made:
        (result,) = undisturbed.decode([packet])
        assert isinstance(result, Decoded) and result.mask is not None, result
        found[packet.id.sequence] = result.mask.classes
    return found
