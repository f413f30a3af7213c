"""A codec small enough to see through: a packet's body is the number of the picture, a mask is full of one class."""

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
from clips import number_of

from pipeline.bundle import ClassInfo, Manifest, QualityLevel
from pipeline.errors import BitstreamError, BundleMismatch, PipelineError
from pipeline.messages import Decoded, Frame, FrameId, Kind, Mask, Packet, Region, Scores

HASH = "ab" * 32
MANIFEST = Manifest(
    name="standin",
    hash=HASH,
    created_by="a test",
    dataset="none",
    classes=tuple(ClassInfo(name=f"class-{k}", colour=(k, 2 * k, 3 * k)) for k in range(5)),
    width=64,
    height=48,
    grid="1x1",
    quality_levels=(
        QualityLevel(index=0, rate_bpp=0.01, miou=0.5, default=True),
        QualityLevel(index=1, rate_bpp=0.02, miou=0.6, default=False),
    ),
    graphs={},
    precision="fp32",
    licence="none",
)
NAMES = [each.name for each in MANIFEST.classes]
PALETTE = np.array([each.colour for each in MANIFEST.classes], np.uint8)
BUNDLE = SimpleNamespace(manifest=MANIFEST, id=bytes.fromhex(HASH[:8]), palette=PALETTE)
LEVELS = frozenset({0, 1})


def packet_of(
    number: int, *, sequence: int, captured_ms: int = 0, epoch: int = 7, quality: int = 0, bundle: bytes | None = None
) -> Packet:
    """A packet of one KEY region whose body is the number of a picture."""
    region = Region(Kind.KEY, 0, 0, bytes([number]))
    id = FrameId(epoch, sequence)
    return Packet(id, captured_ms, bundle or BUNDLE.id, quality, rows=1, columns=1, regions=(region,))


class StandinEncoder:
    outline = None

    def __init__(self) -> None:
        self.quality = 0

    def encode(self, frame: Frame) -> Packet:
        return packet_of(
            number_of(frame.image),
            sequence=frame.id.sequence,
            epoch=frame.id.epoch,
            captured_ms=frame.captured_ms,
            quality=self.quality,
        )


class BulkyEncoder(StandinEncoder):
    """Its KEYs are so large that every WARP saves."""

    def encode(self, frame: Frame) -> Packet:
        packet = super().encode(frame)
        (region,) = packet.regions
        return replace(packet, regions=(replace(region, body=region.body + bytes(500)),))


class StandinDecoder:
    """The picture's number is the class; a number that is none is a packet that cannot be decoded."""

    def __init__(self, *, masks: bool = True, scores: bool = False) -> None:
        self.batches: list[int] = []
        self._masks, self._scores = masks, scores

    def decode(self, packets: Sequence[Packet], cameras: Sequence[str]) -> list[Decoded | PipelineError]:
        assert len(cameras) == len(packets)
        self.batches.append(len(packets))
        return [self._decode(packet) for packet in packets]

    def missing(self, packets: Sequence[Packet], cameras: Sequence[str]) -> list[tuple[Region, ...]]:
        return [()] * len(packets)

    def _decode(self, packet: Packet) -> Decoded | PipelineError:
        number = packet.regions[0].body[0]
        if packet.bundle != BUNDLE.id:
            return BundleMismatch(f"the packet is of bundle {packet.bundle.hex()}")
        if number >= len(PALETTE):
            return BitstreamError(f"there is no class {number}")
        classes = np.full((MANIFEST.height, MANIFEST.width), number, np.uint8)
        mask = Mask(packet.id, packet.captured_ms, packet.bundle, classes)
        only = np.eye(len(PALETTE), dtype=np.float32)[number]
        scores = Scores(packet.id, packet.captured_ms, packet.bundle, only)
        return Decoded(mask if self._masks else None, scores if self._scores else None)
