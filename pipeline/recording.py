"""Offline coding: a clip or a directory of images to packet files, packet files to indexed PNGs.

The packet files of a folder are read in the order of their stems: a WARP needs that of its key before it. Each clip has
an epoch of its own, so that several may lie in one folder.
Where a bundle makes no masks but says which classes are in the picture, JSON takes the place of the PNGs.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle
from pipeline.codec import Decoder
from pipeline.errors import BitstreamError, ConfigError, MissingKey, PipelineError, SourceError
from pipeline.files import write_whole
from pipeline.label_report import pack_labels
from pipeline.mask_image import pack_mask
from pipeline.messages import Decoded, Frame, FrameId, Packet
from pipeline.noise_reduction import picture_filter
from pipeline.source_addresses import STREAMS, shown
from pipeline.sources import damage_of, fit, image_files, open_source
from pipeline.stream_encoder import StreamEncoder

SUFFIX, _MASK = ".mcp", ".png"
_DIGITS = 6  # of the number of a frame, at least, in the name of a clip's packet


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written, and its size."""

    path: Path
    bytes: int


def encode_files(
    encoder: StreamEncoder, bundle: Bundle, source: Path, folder: Path, *, noise_reduction: bool = False
) -> Iterator[Written]:
    """Write one packet file per frame of `source` into `folder`.

    Raises SourceError where the source cannot be read, or not all of it, and ConfigError where the folder has packets
    of another run of this name, whose WARPs would move keys of this one; all is written before that is said.
    """
    size, url = (bundle.manifest.width, bundle.manifest.height), _recorded(source)
    with open_source(url, fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        folder.mkdir(parents=True, exist_ok=True)
        names = _stems(source)
        epoch = _epoch_of(source, names)
        through = picture_filter(noise_reduction=noise_reduction)
        frames = (
            Frame(FrameId(epoch, sequence), round(1000 * picture.time_s), through(fit(picture.image, size)))
            for sequence, picture in enumerate(opened.pictures)
        )
        written = set()
        for packet in _packets(encoder, frames):
            stem = names[packet.id.sequence] if names else f"{source.stem}-{packet.id.sequence:0{_DIGITS}d}"
            one = _write(folder / f"{stem}{SUFFIX}", pack(packet))
            written.add(one.path)
            yield one
        if (damage := damage_of(url, opened)) is not None:
            raise SourceError(damage)
    others = [path for path in sorted(folder.glob(f"*{SUFFIX}")) if path not in written]
    left = [path for path in others if (_is_of(path, epoch) if names else _clip_of(path) == source.stem)]
    if left:
        raise ConfigError(
            f"output {folder} holds packets of another run of {source.name}, {left[0].name} the first of {len(left)}; "
            "remove them, they would be decoded with those of this one"
        )


def decode_files(decoder: Decoder, bundle: Bundle, source: Path, folder: Path) -> Iterator[Written]:
    """Write one indexed PNG, or JSON, per packet file of `source` into `folder`; errors name the packet's file.

    What cannot be decoded is passed over: BitstreamError, or MissingKey where the file of a key is gone, is raised at
    the end, of the first. So is a packet after it that leaves regions out, whose masks would be of older frames.
    ConfigError where there are no packets, BundleMismatch at once.
    """
    packets = sorted(source.glob(f"*{SUFFIX}"), key=lambda path: path.stem)
    if not packets:
        wrong = f"no {SUFFIX} files in it" if source.is_dir() else "there is no such folder"
        raise ConfigError(f"input {source}: {wrong}; name a folder made by maskcast encode")
    folder.mkdir(parents=True, exist_ok=True)
    camera = uuid4().hex  # a new one: keys of another folder, or of this one before, are not its own
    faults: list[PipelineError] = []
    whole = True
    for path in packets:
        decoded = _decoded(decoder, path, camera, whole=whole)
        whole = isinstance(decoded, Decoded)
        if isinstance(decoded, PipelineError):
            if not isinstance(decoded, (BitstreamError, MissingKey)):
                raise decoded
            faults.append(decoded)
        elif decoded.mask is not None:
            yield _write(folder / f"{path.stem}{_MASK}", pack_mask(decoded.mask, "file", bundle.palette))
        elif decoded.scores is not None:
            names = [one.name for one in bundle.manifest.classes]
            yield _write(folder / f"{path.stem}.json", pack_labels(decoded.scores, names))
    if faults:
        raise type(faults[0])(f"{faults[0]} ({len(faults)} of {len(packets)} packets could not be decoded)")


def _decoded(decoder: Decoder, path: Path, camera: str, *, whole: bool) -> Decoded | PipelineError:
    """What the packet of a file shows, or what is wrong with it, in a sentence that names the file.

    `whole`: that before it could be shown, so that regions may be left as they are there.
    """
    try:
        packet = unpack(path.read_bytes())
        (decoded,) = decoder.decode([packet], [camera])
    except BitstreamError as error:
        return BitstreamError(f"packet {path}: {error}; encode it again, or take the file away")
    if isinstance(decoded, Decoded) and decoded.missing:  # part of the mask would be that of an older frame
        decoded = MissingKey(f"the keys of regions {', '.join(map(str, decoded.missing))} are not here")
    if (
        isinstance(decoded, Decoded)
        and not whole
        and len({region.index for region in packet.regions}) < packet.rows * packet.columns
    ):
        decoded = MissingKey("it leaves regions as they are in the packet before it, which cannot be shown")
    if isinstance(decoded, MissingKey):
        return MissingKey(f"packet {path}: {decoded}; put back the packet file that is missing before it")
    return type(decoded)(f"packet {path}: {decoded}") if isinstance(decoded, PipelineError) else decoded


def _packets(encoder: StreamEncoder, frames: Iterable[Frame]) -> Iterator[Packet]:
    """Those of all frames, in their order."""
    for frame in frames:
        yield from encoder.packets(frame)
    yield from encoder.flush()


def _recorded(source: Path) -> str:
    """The address of a clip or a directory; ConfigError for what is live, and would never end."""
    name = str(source)
    if name.startswith(("/dev/video", *(f"{scheme}:" for scheme in STREAMS))):
        told = shown(re.sub(":/+", "://", name, count=1))  # of two slashes a path keeps one
        raise ConfigError(f"input {told}: encode takes a clip or a directory of images; for this use maskcast camera")
    return f"./{name}" if name.isdecimal() else name  # a number alone would be a device


def _epoch_of(source: Path, stems: Sequence[str]) -> int:
    """The same for each run of a clip, so that its packets are the same; of another clip most likely another."""
    name = "/".join((source.resolve().name, *stems[:1])) if stems else source.name
    return zlib.crc32(name.encode("utf-8", "surrogateescape")) & 0xFFFF


def _clip_of(path: Path) -> str | None:
    """The name of the clip that the packet file is of; None for one of an image."""
    clip, _, number = path.stem.rpartition("-")
    return clip if number.isdecimal() and len(number) >= _DIGITS else None


def _is_of(path: Path, epoch: int) -> bool:
    try:
        return unpack(path.read_bytes()).id.epoch == epoch
    except BitstreamError:
        return False


def _stems(source: Path) -> list[str]:
    """The names that the frames of a directory have; none for a clip."""
    if not source.is_dir():
        return []
    stems = [path.stem for path in image_files(source)]
    if len(set(stems)) != len(stems):
        raise SourceError(f"input {source}: two images have the same name but for their suffix; rename one")
    return stems


def _write(path: Path, content: bytes) -> Written:
    write_whole(path, content)
    return Written(path, len(content))
