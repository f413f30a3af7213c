"""A mask survives both of its forms, other programs open the PNG, hostile bytes are turned away cheaply."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import BitstreamError, ConfigError
from pipeline.mask_image import (
    MAX_PIXELS,
    pack_mask,
    pack_mask_rle,
    parse_regions,
    regions_of,
    unpack_mask,
    unpack_mask_rle,
)
from pipeline.messages import FrameId, Kind, Mask

GOLDEN = Path(__file__).parent / "golden"
PALETTE = np.random.default_rng(0).integers(0, 256, (12, 3)).astype(np.uint8)
CLASSES = np.repeat(np.repeat(np.arange(12, dtype=np.uint8).reshape(3, 4), 5, axis=0), 7, axis=1)[:, :27]
MASK = Mask(FrameId(0xBEEF, 4_000_000_000), 1_767_225_600_123, bytes.fromhex("0badcafe"), CLASSES)
CODED = replace(MASK, rows=2, columns=3, kinds=(Kind.KEY, Kind.WARP, None, Kind.DELTA, Kind.WARP, Kind.KEY))
RLE_HEAD = 22


@st.composite
def masks(draw: st.DrawFn) -> tuple[Mask, NDArray[np.uint8]]:
    """A mask of blocks, noise or one class, and a palette that is just large enough."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    height, width = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    block = draw(st.sampled_from([1, 5, 40]))
    colours = draw(st.sampled_from([1, 2, 3, 4, 5, 16, 17, 200, 256]))
    coarse = rng.integers(0, colours, (height, width), dtype=np.uint8)
    classes = coarse[np.arange(height)[:, None] // block, np.arange(width) // block]
    identity = FrameId(draw(st.integers(0, 0xFFFF)), draw(st.integers(0, 0xFFFFFFFF)))
    captured_ms, bundle = draw(st.integers(0, (1 << 48) - 1)), draw(st.binary(min_size=4, max_size=4))
    return Mask(identity, captured_ms, bundle, classes), rng.integers(0, 256, (colours, 3), dtype=np.uint8)


def assert_equal(one: Mask, other: Mask) -> None:
    assert (one.id, one.captured_ms, one.bundle) == (other.id, other.captured_ms, other.bundle)
    assert (one.rows, one.columns, one.kinds) == (other.rows, other.columns, other.kinds)
    assert one.classes.dtype == other.classes.dtype == np.uint8
    np.testing.assert_array_equal(one.classes, other.classes)


@settings(deadline=None)
@given(masks(), st.from_regex(r"[a-z0-9][a-z0-9_-]{0,62}", fullmatch=True))
def test_a_mask_survives_its_png(case: tuple[Mask, NDArray[np.uint8]], camera: str) -> None:
    unpacked, name = unpack_mask(pack_mask(case[0], camera, case[1]))
    assert_equal(unpacked, case[0])
    assert name == camera


@settings(deadline=None)
@given(masks())
def test_a_mask_survives_its_compact_form(case: tuple[Mask, NDArray[np.uint8]]) -> None:
    assert_equal(unpack_mask_rle(pack_mask_rle(case[0])), case[0])


def test_the_largest_mask_survives_both_forms() -> None:
    classes = np.zeros((4096, 4096), np.uint8)
    classes[-1, -1] = 1
    mask = replace(MASK, classes=classes)
    assert_equal(unpack_mask(pack_mask(mask, "cam-1", PALETTE))[0], mask)
    assert_equal(unpack_mask_rle(pack_mask_rle(mask)), mask)


def test_golden_masks_keep_their_meaning() -> None:
    mask, camera = unpack_mask((GOLDEN / "mask_png.bin").read_bytes())
    assert_equal(mask, MASK)
    assert camera == "cam-1"
    assert_equal(unpack_mask_rle((GOLDEN / "mask_rle.bin").read_bytes()), MASK)
    assert_equal(unpack_mask((GOLDEN / "mask_png_regions.bin").read_bytes())[0], CODED)


def test_the_compact_form_is_the_documented_one() -> None:
    classes = np.array([[200, 200, 3], [3, 3, 3]], np.uint8)
    long = np.zeros((2, 150), np.uint8)
    head = bytes.fromhex("4e 01 0badcafe beef ee6b2800 019b76daa87b")
    data = pack_mask_rle(replace(MASK, classes=classes))
    assert data[:RLE_HEAD] == head + bytes.fromhex("0003 0002")
    assert zlib.decompress(data[RLE_HEAD:]) == bytes([200, 2, 3, 4])
    assert zlib.decompress(pack_mask_rle(replace(MASK, classes=long))[RLE_HEAD:]) == bytes([0, 0xAC, 0x02])


DEPTHS = {1: 1, 2: 1, 3: 2, 4: 2, 5: 4, 16: 4, 17: 8, 256: 8}


@pytest.mark.parametrize("colours", DEPTHS)
def test_other_programs_open_the_png(colours: int) -> None:
    rng = np.random.default_rng(colours)
    palette = rng.integers(0, 256, (colours, 3), dtype=np.uint8)
    mask = replace(MASK, classes=rng.integers(0, colours, (9, 37), dtype=np.uint8))
    data = pack_mask(mask, "cam-1", palette)
    assert data[24] == DEPTHS[colours]
    opened = Image.open(io.BytesIO(data))
    assert opened.mode == "P"
    np.testing.assert_array_equal(np.asarray(opened), mask.classes)
    assert bytes(opened.getpalette()[: 3 * colours]) == palette.tobytes()
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    np.testing.assert_array_equal(picture[..., ::-1], palette[mask.classes])


def test_the_png_carries_the_identity_of_its_frame() -> None:
    opened = Image.open(io.BytesIO(pack_mask(MASK, "cam-1", PALETTE)))
    assert opened.text == {
        "camera": "cam-1",
        "epoch": "48879",
        "sequence": "4000000000",
        "captured_ms": "1767225600123",
        "bundle": "0badcafe",
    }


def test_the_png_says_how_each_region_was_coded_in_one_line_to_parse() -> None:
    opened = Image.open(io.BytesIO(pack_mask(CODED, "cam-1", PALETTE)))
    grid, kinds = opened.text["regions"].split()
    assert (grid, kinds) == ("2x3", "KW-DWK")
    assert list(opened.text)[:5] == ["camera", "epoch", "sequence", "captured_ms", "bundle"]


@given(st.integers(1, 15), st.integers(1, 15), st.data())
def test_the_kinds_of_regions_survive_the_png(rows: int, columns: int, data: st.DataObject) -> None:
    count = rows * columns
    shown = [None, *(kind for kind in Kind if kind is not Kind.BACK)]  # what a BACK shows is a WARP, or a KEY
    kinds = data.draw(st.lists(st.sampled_from(shown), min_size=count, max_size=count))
    mask = replace(MASK, rows=rows, columns=columns, kinds=tuple(kinds))
    assert_equal(unpack_mask(pack_mask(mask, "cam-1", PALETTE))[0], mask)


def test_a_mask_whose_regions_are_not_known_says_nothing_of_them() -> None:
    assert regions_of(MASK) == ""
    assert unpack_mask(pack_mask(MASK, "cam-1", PALETTE))[0].kinds == ()


@pytest.mark.parametrize(("rows", "columns", "count"), [(2, 2, 3), (1, 1, 2), (0, 3, 3), (16, 1, 16), (1, 16, 16)])
def test_kinds_that_do_not_fill_the_grid_are_not_packed(rows: int, columns: int, count: int) -> None:
    with pytest.raises(BitstreamError, match="regions"):
        pack_mask(replace(MASK, rows=rows, columns=columns, kinds=(Kind.KEY,) * count), "cam-1", PALETTE)


@pytest.mark.parametrize(
    "text", ["", "2x2", "2x2 KKK", "2x2 KKKX", "2x2 KKKK ", "0x0 ", "02x2 KKKK", "16x1 " + "K" * 16, "2x2 KKKK\n", "K"]
)
def test_text_that_does_not_tell_the_regions_is_refused(text: str) -> None:
    with pytest.raises(BitstreamError, match="regions"):
        parse_regions(text)


def test_the_compact_form_does_not_tell_the_regions() -> None:
    assert pack_mask_rle(CODED) == pack_mask_rle(MASK)


def test_only_a_real_camera_name_is_packed() -> None:
    with pytest.raises(ConfigError):
        pack_mask(MASK, "no spaces", PALETTE)


WRONG = {
    "no pixels": replace(MASK, classes=np.zeros((0, 5), np.uint8)),
    "too many pixels": replace(MASK, classes=np.zeros((1, MAX_PIXELS + 1), np.uint8)),
    "three axes": replace(MASK, classes=np.zeros((2, 2, 2), np.uint8)),
    "wide integers": replace(MASK, classes=CLASSES.astype(np.int64)),
    "epoch": replace(MASK, id=FrameId(1 << 16, 0)),
    "sequence": replace(MASK, id=FrameId(0, -1)),
    "captured_ms": replace(MASK, captured_ms=1 << 48),
    "bundle": replace(MASK, bundle=b"abc"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mask_that_could_not_be_unpacked_is_not_packed(case: str) -> None:
    with pytest.raises(BitstreamError, match="mask"):
        pack_mask(WRONG[case], "cam-1", PALETTE)
    with pytest.raises(BitstreamError, match="mask"):
        pack_mask_rle(WRONG[case])


@pytest.mark.parametrize("palette", [PALETTE[:11], PALETTE[:0], PALETTE[:, :2], PALETTE.astype(np.int32)])
def test_a_palette_that_does_not_fit_is_refused(palette: NDArray[np.uint8]) -> None:
    with pytest.raises(BitstreamError, match=r"palette|class 11"):
        pack_mask(MASK, "cam-1", palette)


def test_masks_beyond_the_compact_form_are_not_packed() -> None:
    noise = np.indices((1024, 1024)).sum(axis=0).astype(np.uint8)
    with pytest.raises(BitstreamError, match="runs"):
        pack_mask_rle(replace(MASK, classes=noise))
    with pytest.raises(BitstreamError, match="16 bits"):
        pack_mask_rle(replace(MASK, classes=np.zeros((1, 65536), np.uint8)))


def chunks_of(png: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 8
    while at < len(png):
        size, kind = struct.unpack_from("!I4s", png, at)
        found.append((kind, png[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    png = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        png += struct.pack("!I4s", len(body), kind) + body + zlib.crc32(kind + body).to_bytes(4)
    return png


CHUNKS = chunks_of(pack_mask(MASK, "cam-1", PALETTE))
IHDR, PLTE, CAMERA, EPOCH, SEQUENCE, CAPTURED, BUNDLE, IDAT, IEND = range(9)
PIXELS = zlib.decompress(CHUNKS[IDAT][1])


def with_body(place: int, body: bytes) -> bytes:
    return png_of([*CHUNKS[:place], (CHUNKS[place][0], body), *CHUNKS[place + 1 :]])


def with_text(*bodies: bytes) -> bytes:
    """The PNG with these text chunks after those that are always there."""
    return png_of([*CHUNKS[:IDAT], *((b"tEXt", body) for body in bodies), *CHUNKS[IDAT:]])


def header(**changes: int) -> bytes:
    fields = {"width": 27, "height": 15, "depth": 4, "colour": 3, "compression": 0, "filter": 0, "lace": 0}
    return with_body(IHDR, struct.pack("!IIBBBBB", *(fields | changes).values()))


PNG_FORGERIES = {
    "no pixels wide": header(width=0),
    "no pixels high": header(height=0),
    "too many pixels": header(width=1 << 31, height=1 << 31),
    "another width": header(width=29),
    "another height": header(height=14),
    "another depth": header(depth=8),
    "no such depth": header(depth=0),
    "grey": header(colour=0),
    "another compression": header(compression=1),
    "another filter method": header(filter=1),
    "interlaced": header(lace=1),
    "a short header": with_body(IHDR, b"\0" * 12),
    "no colours": with_body(PLTE, b""),
    "half a colour": with_body(PLTE, bytes(35)),
    "257 colours": with_body(PLTE, bytes(257 * 3)),
    "a class without a colour": with_body(PLTE, bytes(11 * 3)),
    "a camera that is none": with_body(CAMERA, b"camera\0No Camera"),
    "a camera in latin-1": with_body(CAMERA, b"camera\0caf\xe9"),
    "another key": with_body(CAMERA, b"kamera\0cam-1"),
    "no value": with_body(EPOCH, b"epoch"),
    "epoch too large": with_body(EPOCH, b"epoch\x0065536"),
    "epoch negative": with_body(EPOCH, b"epoch\0-1"),
    "epoch in other digits": with_body(EPOCH, b"epoch\0\xb2"),
    "epoch with a leading zero": with_body(EPOCH, b"epoch\x0001"),
    "sequence too large": with_body(SEQUENCE, b"sequence\x004294967296"),
    "captured far too large": with_body(CAPTURED, b"captured_ms\0" + b"9" * 10_000),
    "bundle too short": with_body(BUNDLE, b"bundle\x000badca"),
    "bundle not hex": with_body(BUNDLE, b"bundle\x000badcafg"),
    "bundle with spaces": with_body(BUNDLE, b"bundle\x000bad cafe"),
    "no zlib": with_body(IDAT, b"abc"),
    "no pixels": with_body(IDAT, b""),
    "zlib cut short": with_body(IDAT, CHUNKS[IDAT][1][:-1]),
    "bytes after zlib": with_body(IDAT, CHUNKS[IDAT][1] + b"\0"),
    "too few pixels": with_body(IDAT, zlib.compress(PIXELS[:-1])),
    "too many bytes of pixels": with_body(IDAT, zlib.compress(PIXELS + b"\0")),
    "another filter": with_body(IDAT, zlib.compress(b"\0" + PIXELS[1:])),
    "bytes in the last chunk": with_body(IEND, b"x"),
    "regions that are none": with_text(b"regions\x002x2 KWK"),
    "regions without a value": with_text(b"regions"),
    "far too many texts": with_text(*[b"later\0"] * 100),
    "a text after the pixels": png_of([*CHUNKS[:IEND], (b"tEXt", b"regions\x001x1 K"), CHUNKS[IEND]]),
    "a missing chunk": png_of(CHUNKS[:EPOCH] + CHUNKS[EPOCH + 1 :]),
    "another chunk": png_of([CHUNKS[0], (b"tIME", b"\0" * 7), *CHUNKS[1:]]),
    "another order": png_of([*CHUNKS[:EPOCH], CHUNKS[SEQUENCE], CHUNKS[EPOCH], *CHUNKS[CAPTURED:]]),
}


def test_texts_of_newer_senders_are_passed_over() -> None:
    mask, _ = unpack_mask(with_text(b"later\0word", b"regions\x001x2 K-", b"last"))
    assert_equal(mask, replace(MASK, rows=1, columns=2, kinds=(Kind.KEY, None)))


@pytest.mark.parametrize("forgery", PNG_FORGERIES)
def test_forged_png_is_rejected(forgery: str) -> None:
    with pytest.raises(BitstreamError, match="mask"):
        unpack_mask(PNG_FORGERIES[forgery])


def rle_of(runs: bytes, width: int = 27, height: int = 15) -> bytes:
    head = pack_mask_rle(MASK)[: RLE_HEAD - 4]
    return head + struct.pack("!HH", width, height) + zlib.compress(runs)


RLE = pack_mask_rle(MASK)
RLE_FORGERIES = {
    "another magic": b"\x4d" + RLE[1:],
    "another version": RLE[:1] + b"\x02" + RLE[2:],
    "no pixels": rle_of(b"", 0, 0),
    "too many pixels": rle_of(b"\0\xff\xff\xff\x7f", 65535, 65535),
    "no runs": rle_of(b""),
    "a lone class": rle_of(b"\0"),
    "a class at the end": rle_of(b"\0\x95\x03\x01"),
    "an open varint": rle_of(b"\0\x95"),
    "only open varints": rle_of(b"\xff" * 100),
    "a run of none": rle_of(b"\0\x95\x03\x01\0"),
    "a longer form": rle_of(b"\0\x95\x83\0"),
    "a varint of five bytes": rle_of(b"\0\x95\x83\x80\x80\x01"),
    "too few pixels in runs": rle_of(b"\0\x94\x03"),
    "too many pixels in runs": rle_of(b"\0\x96\x03"),
    "far too many pixels in runs": rle_of(b"\0\xff\xff\xff\x7f" * 1000),
    "bytes after zlib": RLE + b"\0",
    "no zlib": RLE[:RLE_HEAD] + b"abc",
}


@pytest.mark.parametrize("forgery", RLE_FORGERIES)
def test_forged_compact_form_is_rejected(forgery: str) -> None:
    with pytest.raises(BitstreamError, match="mask"):
        unpack_mask_rle(RLE_FORGERIES[forgery])


def test_truncated_or_extended_masks_are_rejected() -> None:
    for unpack_form, data in ((unpack_mask, pack_mask(MASK, "cam-1", PALETTE)), (unpack_mask_rle, RLE)):
        for size in range(len(data)):
            with pytest.raises(BitstreamError):
                unpack_form(data[:size])
        with pytest.raises(BitstreamError):
            unpack_form(data + b"\0")


def test_png_with_a_flipped_byte_is_rejected() -> None:
    data = pack_mask(MASK, "cam-1", PALETTE)
    for at in range(len(data)):
        with pytest.raises(BitstreamError):
            unpack_mask(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])


def test_decompression_bombs_take_little_memory() -> None:
    bomb = zlib.compress(bytes(200 << 20), 9)
    tracemalloc.start()
    with pytest.raises(BitstreamError, match="too many"):
        unpack_mask(with_body(IDAT, bomb))
    with pytest.raises(BitstreamError, match="too many"):
        unpack_mask_rle(RLE[:RLE_HEAD] + bomb)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 8 << 20


def value_or_error(unpack_form: Callable[[bytes], object], data: bytes) -> None:
    try:
        unpack_form(data)
    except BitstreamError:
        return


@settings(deadline=None)
@given(st.binary(max_size=200), st.sampled_from([IHDR, PLTE, CAMERA, EPOCH, CAPTURED, BUNDLE, IDAT, IEND]))
def test_any_bytes_give_a_mask_or_an_error(data: bytes, place: int) -> None:
    value_or_error(unpack_mask, data)
    value_or_error(unpack_mask, b"\x89PNG\r\n\x1a\n" + data)
    value_or_error(unpack_mask, with_body(place, data))
    value_or_error(unpack_mask, with_text(b"regions\0" + data))
    value_or_error(unpack_mask, with_body(IDAT, zlib.compress(data)))
    value_or_error(unpack_mask_rle, data)
    value_or_error(unpack_mask_rle, RLE[:RLE_HEAD] + data)


@settings(deadline=None)
@given(st.binary(min_size=1, max_size=60), st.integers(1, 300))
def test_any_runs_give_a_mask_or_an_error(runs: bytes, width: int) -> None:
    value_or_error(unpack_mask_rle, rle_of(runs, width, 1))


def test_two_thousand_mutations_give_a_mask_or_an_error() -> None:
    rng = np.random.default_rng(3)
    runs = zlib.decompress(RLE[RLE_HEAD:])
    for _ in range(2000):
        place = int(rng.integers(len(CHUNKS) - 1))
        value_or_error(unpack_mask, with_body(place, mutated(CHUNKS[place][1], rng)))
        value_or_error(unpack_mask, with_body(IDAT, zlib.compress(mutated(PIXELS, rng))))
        value_or_error(unpack_mask_rle, mutated(RLE, rng))
        value_or_error(unpack_mask_rle, rle_of(mutated(runs, rng)))


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.integers(1, 4)):
        changed[rng.integers(len(changed))] = rng.integers(256)
    return bytes(changed)
