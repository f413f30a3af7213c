"""Offline coding: stems kept, one file per frame, errors that name the file."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import write_clip, write_images, write_scratched_clip

from pipeline.bidirectional import BidirectionalEncoder
from pipeline.bitstream import pack, unpack
from pipeline.bundle import Bundle, default_bundle, load_bundle
from pipeline.codec import Decoder, Encoder, open_decoder, open_encoder
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError, MissingKey, SourceError
from pipeline.key_policies import at_interval
from pipeline.mask_image import unpack_mask
from pipeline.messages import Kind, Packet
from pipeline.recording import decode_files, encode_files
from pipeline.video_encoder import VideoEncoder, open_video_encoder


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(default_bundle())


@pytest.fixture(scope="module")
def encoder(bundle: Bundle) -> Encoder:
    return open_encoder(bundle, engine="onnxruntime")


@pytest.fixture(scope="module")
def decoder(bundle: Bundle) -> Decoder:
    return open_decoder(bundle, engine="onnxruntime")


@pytest.fixture
def keys(bundle: Bundle, encoder: Encoder) -> VideoEncoder:
    """Makes a KEY of each frame."""
    return VideoEncoder(encoder, bundle)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for stem in ("b_2", "a_1"):
        image = np.random.default_rng(len(stem)).integers(0, 256, (90, 160, 3), np.uint8)
        cv2.imwrite(str(folder / f"{stem}.png"), image)
    return folder


def test_a_directory_becomes_packets_and_masks_of_the_same_stems(
    bundle: Bundle, keys: VideoEncoder, decoder: Decoder, pictures: Path, tmp_path: Path
) -> None:
    packets = [one.path for one in encode_files(keys, bundle, pictures, tmp_path / "packets")]
    assert [path.name for path in packets] == ["a_1.mcp", "b_2.mcp"]
    masks = [one.path for one in decode_files(decoder, bundle, tmp_path / "packets", tmp_path / "masks")]
    assert [path.name for path in masks] == ["a_1.png", "b_2.png"]
    mask, _ = unpack_mask(masks[1].read_bytes())
    assert mask.id.sequence == 1
    assert mask.classes.shape == (bundle.manifest.height, bundle.manifest.width)


def test_a_damaged_packet_file_is_named(decoder: Decoder, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "x.mcp").write_bytes(b"nonsense")
    with pytest.raises(BitstreamError, match=r"x\.mcp"):
        list(decode_files(decoder, bundle, tmp_path, tmp_path / "masks"))


def test_a_packet_of_another_bundle_is_named(
    bundle: Bundle, keys: VideoEncoder, decoder: Decoder, pictures: Path, tmp_path: Path
) -> None:
    (first, *_) = encode_files(keys, bundle, pictures, tmp_path / "packets")
    packet = unpack(first.path.read_bytes())
    foreign = Packet(packet.id, 0, b"\0\0\0\0", 0, 1, 1, packet.regions)
    first.path.write_bytes(pack(foreign))
    with pytest.raises(BundleMismatch, match=r"a_1\.mcp"):
        list(decode_files(decoder, bundle, tmp_path / "packets", tmp_path / "masks"))


def test_a_folder_without_packets_is_refused(decoder: Decoder, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no \.mcp files"):
        list(decode_files(decoder, bundle, tmp_path, tmp_path / "masks"))


def test_two_pictures_of_one_stem_are_refused(
    bundle: Bundle, keys: VideoEncoder, pictures: Path, tmp_path: Path
) -> None:
    (pictures / "a_1.jpg").write_bytes((pictures / "a_1.png").read_bytes())
    with pytest.raises(SourceError, match="same name but for their suffix"):
        list(encode_files(keys, bundle, pictures, tmp_path / "packets"))


def test_an_unreadable_clip_is_named(bundle: Bundle, keys: VideoEncoder, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.mp4"):
        list(encode_files(keys, bundle, tmp_path / "none.mp4", tmp_path / "packets"))


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Five pictures of one scene, all the same."""
    folder = tmp_path / "video"
    folder.mkdir()
    noise = np.random.default_rng(5).integers(0, 256, (9, 12, 3), np.uint8)
    for number in range(5):
        cv2.imwrite(str(folder / f"{number}.png"), cv2.resize(noise, (480, 360)))
    return folder


def test_of_a_damaged_clip_all_that_can_be_read_is_written_and_then_said(
    bundle: Bundle, keys: VideoEncoder, tmp_path: Path
) -> None:
    clip, written = write_scratched_clip(tmp_path / "clip.mp4"), []
    with pytest.raises(SourceError, match=r"clip\.mp4 is damaged, so that pictures are missing"):
        written.extend(encode_files(keys, bundle, clip, tmp_path / "packets"))
    assert len(list((tmp_path / "packets").iterdir())) >= 20


def test_packets_of_a_longer_clip_of_this_name_are_not_left_behind_unsaid(
    bundle: Bundle, keys: VideoEncoder, tmp_path: Path
) -> None:
    clip, folder = tmp_path / "clip.mp4", tmp_path / "packets"
    assert len(list(encode_files(keys, bundle, write_clip(clip, frames=4), folder))) == 4
    list(encode_files(keys, bundle, write_clip(tmp_path / "another.mp4", frames=2), folder))  # another's do no harm
    assert len(list(encode_files(keys, bundle, clip, folder))) == 4  # nor does the same clip again
    with pytest.raises(ConfigError, match=r"another run of clip\.mp4, clip-000002\.mcp the first of 2;"):
        list(encode_files(keys, bundle, write_clip(clip, frames=2), folder))


def test_images_of_another_run_are_not_left_between_those_of_this_one(
    bundle: Bundle, keys: VideoEncoder, tmp_path: Path
) -> None:
    images, folder = write_images(tmp_path / "images", count=3), tmp_path / "packets"
    list(encode_files(keys, bundle, images, folder))
    (images / "001.png").unlink()
    with pytest.raises(ConfigError, match=r"another run of images, 001\.mcp the first of 1;"):
        list(encode_files(keys, bundle, images, folder))


def test_packets_of_a_clip_of_another_suffix_are_of_the_same_name(
    bundle: Bundle, keys: VideoEncoder, tmp_path: Path
) -> None:
    folder = tmp_path / "packets"
    list(encode_files(keys, bundle, write_clip(tmp_path / "a.mp4", frames=3), folder))
    with pytest.raises(ConfigError, match=r"another run of a\.mov, a-000002\.mcp the first of 1;"):
        list(encode_files(keys, bundle, write_clip(tmp_path / "a.mp4", frames=2).rename(tmp_path / "a.mov"), folder))


def test_images_of_two_folders_of_one_name_may_lie_together(bundle: Bundle, keys: VideoEncoder, tmp_path: Path) -> None:
    for day in ("monday", "friday"):
        (tmp_path / day).mkdir()
        images = write_images(tmp_path / day / "images", count=2)
        for image in images.glob("*.png"):
            image.rename(image.with_name(f"{day}-{image.name}"))
        list(encode_files(keys, bundle, images, tmp_path / "packets"))
    assert len(list((tmp_path / "packets").iterdir())) == 4


def test_noise_is_taken_out_of_a_recording_where_it_is_asked_to(
    bundle: Bundle, keys: VideoEncoder, decoder: Decoder, tmp_path: Path
) -> None:
    still = np.random.default_rng(5).integers(20, 230, (45, 60, 3), np.uint8)
    (tmp_path / "images").mkdir()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 20, (360, 480, 3), np.uint8)
        picture = cv2.resize(still, (480, 360), interpolation=cv2.INTER_NEAREST) + noise
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), picture)
    changed = {}
    for name, asked in (("plain", {}), ("calm", {"noise_reduction": True})):
        list(encode_files(keys, bundle, tmp_path / "images", tmp_path / name, **asked))
        written = decode_files(decoder, bundle, tmp_path / name, tmp_path / f"{name}-masks")
        masks = [cv2.imread(str(one.path), cv2.IMREAD_UNCHANGED) for one in written]
        changed[name] = np.mean(masks[-1] != masks[-2])
    assert changed["calm"] < 0.6 * changed["plain"]


def test_an_image_with_a_short_number_is_not_taken_for_a_frame_of_a_clip(
    bundle: Bundle, keys: VideoEncoder, tmp_path: Path
) -> None:
    images, folder = write_images(tmp_path / "images", count=1), tmp_path / "packets"
    (images / "000.png").rename(images / "clip-7.png")
    list(encode_files(keys, bundle, images, folder))
    assert len(list(encode_files(keys, bundle, write_clip(tmp_path / "clip.mp4", frames=2), folder))) == 2


def test_several_clips_may_lie_in_one_folder(
    bundle: Bundle, encoder: Encoder, decoder: Decoder, tmp_path: Path
) -> None:
    folder = tmp_path / "packets"
    for name in ("street", "street-night", "yard"):
        clip = write_clip(tmp_path / f"{name}.mp4", frames=9)
        list(encode_files(VideoEncoder(encoder, bundle, policy=at_interval(2)), bundle, clip, folder))
    assert len(list(decode_files(decoder, bundle, folder, tmp_path / "masks"))) == 27


@pytest.mark.parametrize("live", ["rtsp://camera/stream", "/dev/video0"])
def test_what_never_ends_is_not_encoded(bundle: Bundle, keys: VideoEncoder, live: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="use maskcast camera"):
        list(encode_files(keys, bundle, Path(live), tmp_path))


def test_a_directory_may_be_called_a_number(
    bundle: Bundle, keys: VideoEncoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_images(Path("2024"), count=2)
    assert len(list(encode_files(keys, bundle, Path("2024"), Path("packets")))) == 2


def test_a_folder_of_keys_and_warps_is_one_stream(
    bundle: Bundle, encoder: Encoder, decoder: Decoder, video: Path, tmp_path: Path
) -> None:
    coded = VideoEncoder(encoder, bundle, policy=at_interval(3))
    sent = [unpack(one.path.read_bytes()) for one in encode_files(coded, bundle, video, tmp_path / "packets")]
    assert [packet.regions[0].kind for packet in sent] == [Kind.KEY, Kind.WARP, Kind.WARP, Kind.KEY, Kind.WARP]
    masks = [one.path for one in decode_files(decoder, bundle, tmp_path / "packets", tmp_path / "masks")]
    assert [path.name for path in masks] == [f"{number}.png" for number in range(5)]
    first, *others = (unpack_mask(path.read_bytes())[0] for path in masks)
    assert [mask.id.sequence for mask in others] == [1, 2, 3, 4]
    assert all((mask.classes == first.classes).all() for mask in others)
    assert len(list(decode_files(decoder, bundle, tmp_path / "packets", tmp_path / "again"))) == 5


def test_the_packet_whose_key_is_gone_is_named_even_where_another_folder_has_one(
    bundle: Bundle, encoder: Encoder, decoder: Decoder, video: Path, tmp_path: Path
) -> None:
    for name in ("whole", "torn"):
        list(encode_files(VideoEncoder(encoder, bundle, policy=at_interval(3)), bundle, video, tmp_path / name))
    list(decode_files(decoder, bundle, tmp_path / "whole", tmp_path / "masks"))
    (tmp_path / "torn" / "3.mcp").unlink()
    written = decode_files(decoder, bundle, tmp_path / "torn", tmp_path / "others")
    assert [next(written).path.name for _ in range(3)] == ["0.png", "1.png", "2.png"]
    with pytest.raises(MissingKey, match=r"4\.mcp.*sequence 3"):
        next(written)


@pytest.fixture
def between(bundle: Bundle, encoder: Encoder) -> BidirectionalEncoder:
    """Lets frames wait for the KEY after them, one in four."""
    return BidirectionalEncoder(encoder, bundle, policy=at_interval(4), lookahead=3)


def test_frames_that_wait_for_a_key_are_one_file_each_too(
    bundle: Bundle, between: BidirectionalEncoder, decoder: Decoder, video: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "packets"
    written = [one.path for one in encode_files(between, bundle, video, folder)]
    assert [path.name for path in written] == [f"{number}.mcp" for number in range(5)]
    sent = [unpack(path.read_bytes()) for path in written]
    assert ["".join(one.kind.name[0] for one in packet.regions) for packet in sent] == ["K", "KWB", "WB", "WB", "B"]
    masks = [unpack_mask(one.path.read_bytes())[0] for one in decode_files(decoder, bundle, folder, tmp_path / "masks")]
    assert [mask.id.sequence for mask in masks] == [0, 1, 2, 3, 4]
    assert all((mask.classes == masks[0].classes).all() for mask in masks)


def test_what_waits_at_the_end_of_a_clip_is_written(
    bundle: Bundle, between: BidirectionalEncoder, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=3)
    written = [one.path.name for one in encode_files(between, bundle, clip, tmp_path / "packets")]
    assert written == [f"clip-{number:06d}.mcp" for number in range(3)]


def test_what_waits_where_a_clip_is_damaged_is_written_before_that_is_said(
    bundle: Bundle, encoder: Encoder, tmp_path: Path
) -> None:
    clip = write_scratched_clip(tmp_path / "clip.mp4")
    waiting = BidirectionalEncoder(encoder, bundle, policy=at_interval(99), lookahead=30)
    with pytest.raises(SourceError, match=r"clip\.mp4 is damaged, so that pictures are missing"):
        list(encode_files(waiting, bundle, clip, tmp_path / "packets"))
    assert len(list((tmp_path / "packets").iterdir())) >= 20


@pytest.mark.parametrize(("lost", "named"), [("0", "1"), ("1", "2")])
def test_without_either_key_the_frame_between_is_named(
    lost: str, named: str, bundle: Bundle, between: BidirectionalEncoder, decoder: Decoder, video: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "packets"
    list(encode_files(between, bundle, video, folder))
    (folder / f"{lost}.mcp").unlink()
    with pytest.raises(MissingKey, match=rf"{named}\.mcp: .*keys of regions 0 are not here; put back the packet file"):
        list(decode_files(decoder, bundle, folder, tmp_path / "masks"))


def test_regions_of_a_grid_are_one_stream_too_and_need_all_their_keys(
    bundle: Bundle, decoder: Decoder, video: Path, tmp_path: Path
) -> None:
    coded = open_video_encoder(bundle, engine="onnxruntime", policy=at_interval(9), grid="2x2")
    folder = tmp_path / "packets"
    for written in encode_files(coded, bundle, video, folder):
        if written.path.stem == "1":
            coded.request_key([3])
    packets = {path.stem: unpack(path.read_bytes()) for path in folder.iterdir()}
    kinds = {stem: "".join(region.kind.name[0] for region in packet.regions) for stem, packet in packets.items()}
    assert kinds == {"0": "KKKK", "1": "WWWW", "2": "WWWK", "3": "WWWW", "4": "WWWW"}
    masks = [unpack_mask(one.path.read_bytes())[0] for one in decode_files(decoder, bundle, folder, tmp_path / "masks")]
    assert [np.mean(mask.classes == masks[0].classes) > 0.98 for mask in masks] == [True] * 5
    (folder / "2.mcp").unlink()
    with pytest.raises(MissingKey, match=r"3\.mcp.*regions 3 "):
        list(decode_files(decoder, bundle, folder, tmp_path / "masks"))


@pytest.mark.parametrize(
    "names", [["a.jpg", "a.k.png"], ["cam.png", "cam.night.png", "cam.x.png"], ["b.png", "b-1.png"]], ids=str
)
def test_packets_of_images_are_read_in_the_order_they_were_made_whatever_they_are_called(
    bundle: Bundle, encoder: Encoder, decoder: Decoder, tmp_path: Path, names: list[str]
) -> None:
    (tmp_path / "in").mkdir()
    image = np.random.default_rng(0).integers(0, 256, (90, 160, 3), np.uint8)
    for name in names:
        cv2.imwrite(str(tmp_path / "in" / name), image)
    video = VideoEncoder(encoder, bundle, policy=at_interval(30))
    made = [one.path.stem for one in encode_files(video, bundle, tmp_path / "in", tmp_path / "packets")]
    shown = [one.path.stem for one in decode_files(decoder, bundle, tmp_path / "packets", tmp_path / "masks")]
    assert shown == made == sorted(Path(name).stem for name in names)


def test_what_cannot_be_decoded_is_passed_over_and_told_at_the_end(
    bundle: Bundle, encoder: Encoder, decoder: Decoder, tmp_path: Path
) -> None:
    clip = write_clip(tmp_path / "clip.mp4", frames=9)
    video = VideoEncoder(encoder, bundle, policy=at_interval(3))
    packets = [one.path for one in encode_files(video, bundle, clip, tmp_path / "packets")]
    packets[1].write_bytes(packets[1].read_bytes()[:-1])
    packets[3].unlink()  # the second KEY
    shown = []
    with pytest.raises(BitstreamError, match=r"000001\.mcp.*encode it again.*3 of 8 packets could not be decoded"):
        shown.extend(one.path.stem[-1] for one in decode_files(decoder, bundle, tmp_path / "packets", tmp_path / "m"))
        pytest.fail("nothing was said")
    assert sorted(path.stem[-1] for path in (tmp_path / "m").iterdir()) == ["0", "2", "6", "7", "8"]
