"""Offline coding: a clip or a directory of images to packet files, packet files to indexed PNGs."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle
from pipeline.codec import Decoder, Encoder
from pipeline.errors import BitstreamError, ConfigError, PipelineError, SourceError
from pipeline.mask_image import pack_mask
from pipeline.messages import Frame, FrameId
from pipeline.sources import fit, image_files, open_source

SUFFIX = ".mcp"


@dataclass(frozen=True, slots=True)
class Written:
    """One file that was written, and its size."""

    path: Path
    bytes: int


def encode_files(encoder: Encoder, bundle: Bundle, source: Path, folder: Path) -> Iterator[Written]:
    """Write one packet file per frame of `source` into `folder`; raises SourceError when it cannot be read."""
    size = (bundle.manifest.width, bundle.manifest.height)
    with open_source(str(source), fps=25.0, timeout_s=5.0, decode_threads=1) as opened:
        folder.mkdir(parents=True, exist_ok=True)
        names = _stems(source)
        for sequence, picture in enumerate(opened.pictures):
            frame = Frame(FrameId(0, sequence), round(1000 * picture.time_s), fit(picture.image, size))
            stem = names[sequence] if names else f"{source.stem}-{sequence:06d}"
            yield _write(folder / f"{stem}{SUFFIX}", pack(encoder.encode(frame)))


def decode_files(decoder: Decoder, bundle: Bundle, source: Path, folder: Path) -> Iterator[Written]:
    """Write one indexed PNG per packet file of `source` into `folder`; raises ConfigError or BitstreamError."""
    packets = sorted(source.glob(f"*{SUFFIX}"))
    if not packets:
        raise ConfigError(f"input {source}: no {SUFFIX} files in it; name a folder made by maskcast encode")
    folder.mkdir(parents=True, exist_ok=True)
    for path in packets:
        try:
            (mask,) = decoder.decode([unpack(path.read_bytes())])
        except BitstreamError as error:
            raise BitstreamError(f"packet {path}: {error}") from error
        if isinstance(mask, PipelineError):
            raise type(mask)(f"packet {path}: {mask}")
        yield _write(folder / f"{path.stem}.png", pack_mask(mask, "file", bundle.palette))


def _stems(source: Path) -> list[str]:
    """The names that the frames of a directory have; none for a clip."""
    if not source.is_dir():
        return []
    stems = [path.stem for path in image_files(source)]
    if len(set(stems)) != len(stems):
        raise SourceError(f"input {source}: two images have the same name but for their suffix; rename one")
    return stems


def _write(path: Path, content: bytes) -> Written:
    path.write_bytes(content)
    return Written(path, len(content))
