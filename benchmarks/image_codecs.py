"""Image codecs for one RGB frame, each as good as it is to be had here: what a learned codec has to beat.

    python benchmarks/image_codecs.py [--seed S] [--frames N]      bpp and PSNR of every setting on a rendered street

What counts as the frame's bytes is all that a receiver needs to decode this one frame:
  JPEG   the file: 4:2:0, optimised Huffman tables, baseline or progressive, whichever is smaller
  WebP   the file: lossy, method 6
  HEVC   the raw stream without a container: parameter sets and one intra picture by libx265, without SEI
  AV1    the raw stream without a container: sequence header and one intra picture
In a stream the parameter sets of HEVC and AV1 are the same for every frame of a camera and need be sent once only;
`once_bytes` says how many they are, so that they can be left out of the count.

Settings were chosen by mIoU behind a segmentation network (FDDWNet, 25 frames of CamVid), not by PSNR, and the two
disagree: adaptive quantisation, which spares flat areas, saves HEVC 13 % of its bits at equal mIoU, and tune=iq of
libaom saves AV1 40 %, though both lose PSNR. 10 bits and slower presets gave nothing. Each codec also has a variant at
half the size, enlarged again by the receiver: at most rates it needs far fewer bits for the same mIoU.
"""

import io
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any

import av
import cv2
import numpy as np
import PIL
import typer
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import features
from rich.console import Console
from rich.table import Table

from pipeline.errors import ConfigError
from pipeline.streets import render_street

Image = NDArray[np.uint8]

# Swscale's slow and exact ways: bicubic, chroma of full height, rounded right.
_SWSCALE = 4 | 0x2000 | 0x4000 | 0x40000
_X265 = {
    "keyint": 1,
    "repeat-headers": 1,
    "info": 0,
    "aq-mode": 2,
    "aq-strength": 2,
    "rc-lookahead": 0,
    "bframes": 0,
    "pools": "none",
    "frame-threads": 1,
    "log-level": "none",
}
_HEVC_PARAMETER_SETS, _AV1_DELIMITER, _AV1_SEQUENCE = range(32, 35), 2, 1


@dataclass(frozen=True, slots=True)
class ImageCodec:
    """One codec: RGB (H, W, 3) and a quality to bytes, and back; a higher place in `qualities` is a higher rate."""

    name: str
    encoder: str  # the library that encodes
    qualities: tuple[int, ...]
    half_qualities: tuple[int, ...]  # those worth trying at half the size
    encode: Callable[[Image, int], bytes]
    decode: Callable[[bytes], Image]
    once_bytes: Callable[[bytes], int] = lambda _: 0  # of a frame's bytes, those a stream need send only once


@dataclass(frozen=True, slots=True)
class Setting:
    """A working point of a codec: its quality parameter, and whether the picture is halved before coding."""

    codec: ImageCodec
    quality: int
    half: bool

    def __str__(self) -> str:
        return f"{self.quality}, half size" if self.half else str(self.quality)

    def encode(self, image: Image) -> bytes:
        """RGB (H, W, 3) -> all bytes a receiver needs."""
        height, width = image.shape[:2]
        small = cv2.resize(image, (width // 2, height // 2), interpolation=cv2.INTER_AREA) if self.half else image
        return self.codec.encode(small.astype(np.uint8, copy=False), self.quality)

    def decode(self, data: bytes, size: tuple[int, int]) -> Image:
        """The bytes -> RGB of `size` (H, W)."""
        image = self.codec.decode(data)
        if self.half:
            image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_CUBIC).astype(np.uint8, copy=False)
        return image


def settings(codec: ImageCodec) -> list[Setting]:
    """The sweep of a codec, half size first: at 480x360 from about 0.03 to 2 bits per pixel."""
    return [
        *(Setting(codec, quality, True) for quality in codec.half_qualities),
        *(Setting(codec, quality, False) for quality in codec.qualities),
    ]


def open_codecs() -> dict[str, ImageCodec]:
    """The codecs by name; ConfigError where a library lacks an encoder and there is no other for it."""
    if not features.check("webp"):
        raise ConfigError("Pillow is built without WebP; install the wheel of Pillow from the package index")
    if "libx265" not in av.codecs_available:
        raise ConfigError("PyAV is built without libx265; install the wheel of PyAV from the package index")
    codecs = (
        ImageCodec(
            "JPEG",
            f"libjpeg-turbo in OpenCV {cv2.__version__}",
            (5, 10, 20, 35, 60, 85),
            (5, 10, 20, 35, 55, 75, 90),
            _encode_jpeg,
            _decode_jpeg,
        ),
        ImageCodec(
            "WebP",
            f"libwebp {features.version('webp')} in Pillow",
            (0, 10, 30, 60, 85),
            (0, 5, 10, 20, 40, 60, 80, 92),
            _encode_webp,
            _decode_pillow,
        ),
        ImageCodec(
            "HEVC intra",
            f"libx265 in PyAV {av.__version__}",
            (44, 40, 36, 32, 28, 24),
            (47, 42, 38, 34, 31, 28, 25, 21, 16),
            _encode_hevc,
            _decode_hevc,
            hevc_parameter_bytes,
        ),
        _av1(),
    )
    return {codec.name: codec for codec in codecs}


def _av1() -> ImageCodec:
    """AV1 by libaom, which Pillow's wheel has for AVIF, or by libsvtav1 in PyAV, about 15 % worse at equal mIoU."""
    if features.check("avif"):
        return ImageCodec(
            "AV1 intra",
            f"libaom, tune=iq, in Pillow {PIL.__version__}",
            (0, 10, 20, 35, 55, 75),
            (0, 8, 16, 26, 38, 52, 68, 85),
            _encode_aom,
            _decode_av1,
            av1_sequence_bytes,
        )
    if "libsvtav1" not in av.codecs_available:
        raise ConfigError("neither Pillow nor PyAV has an AV1 encoder; install Pillow 11.3 or later")
    return ImageCodec(
        "AV1 intra",
        f"libsvtav1, tune=iq, in PyAV {av.__version__}",
        (62, 56, 50, 42, 32, 22),
        (58, 52, 46, 40, 34, 27, 20, 12),
        _encode_svt,
        _decode_av1,
        av1_sequence_bytes,
    )


def _encode_jpeg(image: Image, quality: int) -> bytes:
    bgr = np.ascontiguousarray(image[..., ::-1])
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_OPTIMIZE, 1]
    options += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420]
    files = (cv2.imencode(".jpg", bgr, [*options, cv2.IMWRITE_JPEG_PROGRESSIVE, flag])[1].tobytes() for flag in (0, 1))
    return min(files, key=len)


def _decode_jpeg(data: bytes) -> Image:
    bgr = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    if bgr is None:
        raise ValueError("not a JPEG file")
    return np.ascontiguousarray(bgr[..., ::-1]).astype(np.uint8, copy=False)


def _encode_webp(image: Image, quality: int) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "WEBP", quality=quality, method=6)
    return file.getvalue()


def _decode_pillow(data: bytes) -> Image:
    return np.asarray(Pillow.open(io.BytesIO(data)).convert("RGB"), np.uint8)


def _encode_hevc(image: Image, quality: int) -> bytes:
    parameters = ":".join(f"{name}={value}" for name, value in ({"crf": quality} | _X265).items())
    return _encode_video("libx265", image, {"preset": "slow", "x265-params": parameters})


def _decode_hevc(data: bytes) -> Image:
    return _decode_video("hevc", data)


def hevc_parameter_bytes(data: bytes) -> int:
    """Bytes of the parameter sets (VPS, SPS, PPS) of an Annex B stream, start codes included."""
    units = [len(unit) for unit in data.split(b"\0\0\1")[1:] if unit[0] >> 1 in _HEVC_PARAMETER_SETS]
    return sum(units) + 3 * len(units)


def _encode_aom(image: Image, quality: int) -> bytes:
    file = io.BytesIO()
    options: dict[str, Any] = {"quality": quality, "speed": 4, "subsampling": "4:2:0", "range": "full"}
    Pillow.fromarray(image).save(file, "AVIF", codec="aom", max_threads=1, advanced={"tune": "iq"}, **options)
    return _without_delimiters(_media_data(file.getvalue()))


def _encode_svt(image: Image, quality: int) -> bytes:
    options = {"preset": "4", "crf": str(quality), "svtav1-params": "avif=1:tune=3:lp=1"}
    return _without_delimiters(_encode_video("libsvtav1", image, options))


def _decode_av1(data: bytes) -> Image:
    return _decode_video("libdav1d", data)


def av1_sequence_bytes(data: bytes) -> int:
    """Bytes of the sequence header of an AV1 stream."""
    return sum(len(unit) for kind, unit in _open_bitstream_units(data) if kind == _AV1_SEQUENCE)


def _without_delimiters(data: bytes) -> bytes:
    return b"".join(unit for kind, unit in _open_bitstream_units(data) if kind != _AV1_DELIMITER)


def _open_bitstream_units(data: bytes) -> list[tuple[int, bytes]]:
    """An AV1 stream as its units, each with its type; all carry their size, as encoders write them."""
    units, start = [], 0
    while start < len(data):
        kind, place = data[start] >> 3 & 15, start + 1 + (data[start] >> 2 & 1)
        size = 0
        for shift in itertools.count(0, 7):
            size |= (data[place] & 127) << shift
            place += 1
            if data[place - 1] < 128:
                break
        units.append((kind, data[start : place + size]))
        start = place + size
    return units


def _media_data(file: bytes) -> bytes:
    """The media data box of an AVIF file of one picture: its AV1 stream."""
    start = 0
    while start < len(file):
        size = int.from_bytes(file[start : start + 4], "big")
        if file[start + 4 : start + 8] == b"mdat":
            return file[start + 8 : start + size]
        start += size
    raise ValueError("no media data in the AVIF file")


def _encode_video(name: str, image: Image, options: dict[str, str]) -> bytes:
    """One picture as the raw stream of a video encoder, BT.709, 4:2:0."""
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format="yuv420p", dst_colorspace="itu709", interpolation=_SWSCALE
    )
    frame.pts = 0
    codec: Any = av.CodecContext.create(name, "w")
    codec.width, codec.height, codec.pix_fmt = frame.width, frame.height, "yuv420p"
    codec.time_base, codec.gop_size, codec.options = Fraction(1, 25), 1, options
    return b"".join(bytes(packet) for packet in [*codec.encode(frame), *codec.encode(None)])


def _decode_video(name: str, data: bytes) -> Image:
    codec: Any = av.CodecContext.create(name, "r")
    frame = next(iter([*codec.decode(av.Packet(data)), *codec.decode(None)]))
    # What the stream says of its colours holds; ours says nothing, and is BT.709.
    source = "itu709" if frame.colorspace == 2 else None
    rgb: Image = frame.reformat(format="rgb24", src_colorspace=source, interpolation=_SWSCALE).to_ndarray()
    return rgb


def main(
    seed: Annotated[int, typer.Option(help="which street")] = 3,
    frames: Annotated[int, typer.Option(min=1)] = 2,
) -> None:
    av.logging.set_level(av.logging.PANIC)
    images = [frame.image for frame in render_street(seed, frames=frames, fps=1.0)]
    for codec in open_codecs().values():
        table = Table("quality", "bpp", "of it once", "PSNR, dB", title=f"{codec.name}: {codec.encoder}")
        for setting in settings(codec):
            files = [setting.encode(image) for image in images]
            size = (images[0].shape[0], images[0].shape[1])
            pairs = [(setting.decode(file, size), image) for file, image in zip(files, images, strict=True)]
            error = np.mean([(a.astype(float) - b) ** 2 for a, b in pairs])
            bits = [8 * sum(map(count, files)) / (len(files) * size[0] * size[1]) for count in (len, codec.once_bytes)]
            table.add_row(str(setting), f"{bits[0]:.4f}", f"{bits[1]:.4f}", f"{10 * np.log10(255**2 / error):.2f}")
        Console().print(table)


if __name__ == "__main__":
    typer.run(main)
