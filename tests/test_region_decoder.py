"""Packets of regions through a decoder that can be seen through: a place's class is its largest latent."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import coding
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.bitstream import pack, unpack
from pipeline.bundle import tables_from
from pipeline.codec import Decoder, Encoder
from pipeline.errors import BitstreamError, BundleMismatch, ConfigError, MissingKey, PipelineError
from pipeline.flow_coding import decode_flow, encode_flow, grid_of, node_flow
from pipeline.keys import KeyBuffer, KeyBuffers
from pipeline.latent_coding import decode_latents
from pipeline.messages import Decoded, Frame, FrameId, Kind, Mask, Packet, Region
from pipeline.region_decoder import LastMasks, cells_of, read
from pipeline.regions import Grid

GOLDEN = Path(__file__).parent / "golden"
K, W, B, D = Kind.KEY, Kind.WARP, Kind.BACK, Kind.DELTA
HEIGHT, WIDTH, CLASSES, LEVEL = 256, 256, 5, 2
SIZE = (HEIGHT // 16, WIDTH // 16)
BUNDLE = SimpleNamespace(
    id=b"abcd",
    path=Path("made up"),
    manifest=SimpleNamespace(height=HEIGHT, width=WIDTH, classes=range(CLASSES)),
    tables=tables_from(coding.stored_tables(prior=True, rows=SIZE[0])),
    latent_size=SIZE,
)
GRIDS = {(rows, columns): Grid(rows, columns, HEIGHT, WIDTH) for rows in (1, 2) for columns in (1, 2)}
GRID, WHOLE = GRIDS[2, 2], GRIDS[1, 1]


class LatentsOfPicture:
    """Stands in for the encode graph: the red of a place's first pixel is its class."""

    def run(self, image: np.ndarray, quality: np.ndarray) -> list[np.ndarray]:
        rng = np.random.default_rng(int(image[0, 0, 0, 2]))
        red = image[0, ::16, ::16, 0]
        y = rng.normal(0, 1, (coding.LATENTS, *SIZE)).astype(np.float32)
        y[:CLASSES] = np.where(np.arange(CLASSES)[:, None, None] == red, 9.0, -9.0)
        return [y[None], np.ones((1, coding.HYPER, 4, 4), np.float32)]


class ClassOfLatents:
    """Stands in for the decode graph: logits are the first latents. Keeps what it was given."""

    def __init__(self) -> None:
        self.given: list[np.ndarray] = []

    def run(self, y_hat: np.ndarray, quality: np.ndarray) -> list[np.ndarray]:
        self.given += list(y_hat)
        return [y_hat[:, :CLASSES].repeat(4, axis=2).repeat(4, axis=3)]


class Score:
    """Stands in for the labels graph: the one score is how many frames it has seen."""

    def __init__(self) -> None:
        self.frames = 0

    def run(self, y_hat: np.ndarray, quality: np.ndarray) -> list[np.ndarray]:
        first, self.frames = self.frames + 1, self.frames + len(y_hat)
        return [np.repeat(np.arange(first, self.frames + 1, dtype=np.float32)[:, None], CLASSES, axis=1)]


@pytest.fixture
def graph() -> ClassOfLatents:
    return ClassOfLatents()


@pytest.fixture
def worker(graph: ClassOfLatents) -> Decoder:
    return Decoder(BUNDLE, graph)  # type: ignore[arg-type]


def picture(classes: int | np.ndarray) -> np.ndarray:
    """RGB (H, W, 3) of classes (h, w) by place of the latent, or of one."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    image[..., 0] = np.broadcast_to(classes, SIZE).repeat(16, axis=0).repeat(16, axis=1)
    return image


def keys(
    classes: int | np.ndarray,
    sequence: int,
    *,
    grid: Grid = GRID,
    regions: Sequence[int] | None = None,
    quality: int = LEVEL,
) -> Packet:
    """A packet of KEY regions, all of them where none are named."""
    encoder = Encoder(BUNDLE, LatentsOfPicture(), quality=quality, grid=grid)  # type: ignore[arg-type]
    return encoder.encode(Frame(FrameId(7, sequence), 40 * sequence, picture(classes)), regions)


def warp(index: int, age: int, *, dx: int = 0, grid: Grid = GRID) -> Region:
    """A WARP region by so many px to the left, the same everywhere."""
    place = grid.places[index].picture
    nodes = grid_of(place.height, place.width)
    coefficients = np.zeros((2, nodes.coefficients), np.int16)
    coefficients[0, 0] = dx
    return Region(W, index, age, encode_flow(coefficients, nodes))


def back(age: int, *, dx: int = 0) -> Region:
    """A BACK of the whole frame, by so many px; that to the KEY of its own frame has nothing to say."""
    return replace(warp(0, age, dx=dx, grid=WHOLE), kind=B) if age else Region(B, 0, 0, b"")


def of(packet: Packet, *regions: Region) -> Packet:
    """The packet with these regions in the place of its own."""
    return replace(packet, regions=regions)


def mixed(classes: int | np.ndarray, sequence: int, kinds: str, *, age: int = 1) -> Packet:
    """A packet by its letters, region by region: K, W, or - for none; WARPs do not move."""
    fresh = keys(classes, sequence)
    letters = {"K": lambda at: fresh.regions[at], "W": lambda at: warp(at, age)}
    return of(fresh, *(letters[letter](at) for at, letter in enumerate(kinds) if letter != "-"))


def decode(worker: Decoder, *packets: Packet) -> list[Decoded | PipelineError]:
    """What packets are decoded to, each through its bytes and in a batch of its own."""
    return [worker.decode([unpack(pack(packet))])[0] for packet in packets]


def mask_of(result: Decoded | PipelineError) -> Mask:
    assert isinstance(result, Decoded) and result.mask is not None, result
    return result.mask


def middles(mask: Mask) -> list[int]:
    """The class in the middle of each region, which no other region's window reaches."""
    return [int(mask.classes[y, x]) for y in (64, 192) for x in (64, 192)]


@pytest.mark.parametrize("grid", GRIDS.values(), ids=str)
def test_a_frame_of_keys_is_the_same_mask_in_every_grid(grid: Grid, worker: Decoder) -> None:
    classes = np.random.default_rng(1).integers(0, CLASSES, SIZE)
    (result,) = decode(worker, keys(classes, 0, grid=grid))
    mask = mask_of(result)
    np.testing.assert_array_equal(mask.classes[8::16, 8::16], classes)
    assert (mask.rows, mask.columns, mask.kinds) == (grid.rows, grid.columns, (K,) * grid.count)


def test_the_encoder_makes_keys_of_the_regions_that_are_named() -> None:
    classes = np.random.default_rng(2).integers(0, CLASSES, SIZE)
    every, some = keys(classes, 4), keys(classes, 4, regions=[3, 1])
    assert [(one.kind, one.index, one.age) for one in every.regions] == [(K, index, 0) for index in range(4)]
    assert some == of(every, every.regions[1], every.regions[3])


def test_a_region_changes_its_part_of_the_mask_alone(worker: Decoder) -> None:
    results = decode(worker, keys(1, 0), mixed(3, 1, "-K--"), mixed(2, 2, "KW-W", age=2))
    assert [middles(mask_of(one)) for one in results] == [[1, 1, 1, 1], [1, 3, 1, 1], [2, 1, 1, 1]]
    np.testing.assert_array_equal(mask_of(results[1]).classes[:, :128], 1)
    assert [mask_of(one).kinds for one in results] == [(K, K, K, K), (None, K, None, None), (K, W, None, W)]


def test_a_packet_without_regions_is_the_last_mask_again(worker: Decoder) -> None:
    first, again = (mask_of(one) for one in decode(worker, keys(2, 0), of(keys(0, 1))))
    np.testing.assert_array_equal(again.classes, first.classes)
    assert (again.id, again.captured_ms, again.kinds) == (FrameId(7, 1), 40, (None,) * 4)


def test_regions_refer_to_keys_of_their_own(worker: Decoder) -> None:
    """Each WARP shows the key that it names, whatever newer ones there are."""
    later = of(keys(0, 3), warp(0, 3), warp(1, 2), warp(2, 1), warp(3, 3))
    results = decode(worker, keys(1, 0), mixed(2, 1, "WKWW"), mixed(3, 2, "W-KK", age=2), later)
    assert middles(mask_of(results[-1])) == [1, 2, 3, 1]


def test_a_region_without_its_key_keeps_its_mask_and_is_named(worker: Decoder) -> None:
    lost = mixed(3, 1, "KKWW")
    results = decode(worker, keys(1, 0), of(keys(2, 2), warp(0, 1), keys(2, 2).regions[1], warp(2, 2), warp(3, 2)))
    shown = results[1]
    assert isinstance(shown, Decoded)
    assert shown.missing == (0,)
    assert middles(mask_of(shown)) == [1, 2, 1, 1]
    assert mask_of(shown).kinds == (None, K, W, W)
    assert worker.missing([of(lost, warp(0, 1))], [""]) == [()]  # of sequence 0, which is here


def test_where_nothing_can_be_shown_a_key_is_missing(worker: Decoder) -> None:
    results = decode(worker, keys(1, 0), of(keys(1, 5), warp(0, 2), warp(3, 4)))
    assert isinstance(results[1], MissingKey)
    assert "region 0: the key of epoch 7, sequence 3" in str(results[1])


@pytest.mark.parametrize("kinds", ["K-WW", "KKK-", "----", "KWKK"])
def test_before_there_was_a_whole_mask_none_is_made_of_a_part(kinds: str, worker: Decoder) -> None:
    first, rest = decode(worker, mixed(1, 4, kinds), mixed(2, 5, "KKKK"))
    assert isinstance(first, MissingKey)
    assert middles(mask_of(rest)) == [2, 2, 2, 2]


def test_keys_of_a_packet_that_could_not_be_shown_are_there(worker: Decoder) -> None:
    decode(worker, mixed(1, 4, "KK--"))
    (result,) = decode(worker, of(keys(2, 5), warp(0, 1), warp(1, 1), *keys(2, 5).regions[2:]))
    assert middles(mask_of(result)) == [1, 1, 2, 2]


def test_a_warped_region_follows_the_motion_from_what_overlaps(worker: Decoder) -> None:
    """Region 0 shows what was 32 px right of it in the key: where its own core ends, what its neighbour showed."""
    classes = np.repeat([[1] * 8 + [2] * 8], SIZE[0], axis=0)
    key, moved = keys(classes, 0), of(keys(0, 1), warp(0, 1, dx=32), warp(1, 1, dx=32), warp(2, 1), warp(3, 1))
    before, after = (mask_of(one).classes for one in decode(worker, key, moved))
    assert (before[20, 8:128:16] == 1).all()
    assert (after[20, 8:128:16] == [1] * 6 + [2] * 2).all()
    np.testing.assert_array_equal(after[HEIGHT - 1], before[HEIGHT - 1])


def test_the_graph_sees_neighbours_moved_to_where_they_are_now(worker: Decoder, graph: ClassOfLatents) -> None:
    classes = np.repeat([[1, 2, 3, 4, 0, 1, 2, 3] * 2], SIZE[0], axis=0)
    moved = of(keys(0, 1), warp(0, 1, dx=16), *keys(4, 1).regions[1:])
    decode(worker, keys(classes, 0), moved)
    seen = graph.given[1][:CLASSES].argmax(0)
    assert seen[:8, :8].tolist() == [[2, 3, 4, 0, 1, 2, 3, 3]] * 8
    assert (seen[:, 8:] == 4).all() and (seen[8:] == 4).all()


def test_the_graph_sees_absent_neighbours_as_they_last_were(worker: Decoder, graph: ClassOfLatents) -> None:
    decode(worker, keys(1, 0), mixed(2, 1, "-K--"), mixed(3, 2, "--K-"))
    seen = graph.given[2][:CLASSES].argmax(0)
    assert [int(seen[row, column]) for row in (0, 8) for column in (0, 8)] == [1, 2, 3, 1]


def test_neighbours_of_another_level_are_not_mixed_in(worker: Decoder, graph: ClassOfLatents) -> None:
    decode(worker, keys(1, 0), keys(3, 1, regions=[0], quality=0))
    core, around = graph.given[1][:, :8, :8], graph.given[1][:, 8:, 8:]
    np.testing.assert_array_equal(around, np.broadcast_to(core[:, 7:, 7:], around.shape))


def test_a_frame_without_keys_needs_no_graph(worker: Decoder, graph: ClassOfLatents) -> None:
    decode(worker, keys(1, 0), mixed(2, 1, "WWWW"), mixed(2, 2, "W-W-", age=2))
    assert len(graph.given) == 1


def test_keys_that_come_one_by_one_in_a_batch_see_each_other(worker: Decoder, graph: ClassOfLatents) -> None:
    """As a worker fetches them: each a packet of its own, of one frame."""
    classes = np.random.default_rng(5).integers(0, CLASSES, SIZE)
    whole = keys(classes, 3)
    worker.decode([of(whole, region) for region in whole.regions])
    for canvas in graph.given[1:]:
        np.testing.assert_array_equal(canvas, graph.given[0])
    (result,) = decode(worker, mixed(0, 4, "WWWW"))
    np.testing.assert_array_equal(mask_of(result).classes[8::16, 8::16], classes)


def stream(count: int = 12) -> list[Packet]:
    """Packets of a scene that is another one in each; each region has keys of its own time, and does not move."""
    rng, packets, newest = np.random.default_rng(8), [], dict.fromkeys(range(4), 0)
    for sequence in range(count):
        fresh = keys(rng.integers(0, CLASSES, SIZE), sequence)
        newest |= {at: sequence for at in range(4) if sequence == 0 or rng.random() < 0.3}
        regions = [fresh.regions[at] if newest[at] == sequence else warp(at, sequence - newest[at]) for at in range(4)]
        packets.append(of(fresh, *regions))
    return packets


def test_a_batch_gives_what_its_packets_give_alone(worker: Decoder) -> None:
    packets = stream()
    alone = decode(Decoder(BUNDLE, ClassOfLatents()), *packets)  # type: ignore[arg-type]
    for one, other in zip(worker.decode(packets), alone, strict=True):
        np.testing.assert_array_equal(mask_of(one).classes, mask_of(other).classes)
        assert mask_of(one).kinds == mask_of(other).kinds


def own_places(index: int) -> np.ndarray:
    """Of the places (h, w) of the latent those that only this region's window has."""
    windows = np.zeros((4, *SIZE), bool)
    for at, place in enumerate(GRID.places):
        windows[at][place.window.at(16)] = True
    return windows[index] & (windows.sum(0) == 1)


@pytest.mark.parametrize("seed", range(4))
def test_repeated_late_and_lost_packets_never_show_a_wrong_key(seed: int, worker: Decoder) -> None:
    """Where a region is shown it shows what it would, had every packet come; where not, it is named."""
    packets, rng = stream(), random.Random(seed)
    right = [mask_of(one) for one in decode(Decoder(BUNDLE, ClassOfLatents()), *packets)]  # type: ignore[arg-type]
    come = [packets[0], *(packets[min(max(round(at + rng.gauss(0, 2)), 0), 11)] for at in range(1, 12))]
    named = 0
    for packet, result in zip(come, decode(worker, *come), strict=True):
        if isinstance(result, MissingKey):
            continue
        mask, expected = mask_of(result), right[packet.id.sequence]
        shown = [at for at, kind in enumerate(mask.kinds) if kind is not None]
        assert isinstance(result, Decoded) and sorted([*shown, *result.missing]) == [0, 1, 2, 3]
        named += len(result.missing)
        for own in map(own_places, shown):
            found, wanted = (one.classes[8::16, 8::16][own] for one in (mask, expected))
            np.testing.assert_array_equal(found, wanted)
    assert named


def test_an_older_mask_does_not_take_the_place_of_a_newer_one(worker: Decoder) -> None:
    results = decode(worker, keys(1, 4), keys(2, 9), mixed(3, 6, "KKKK"), mixed(4, 10, "-K--"))
    assert middles(mask_of(results[-1])) == [2, 4, 2, 2]


def test_masks_of_other_cameras_epochs_and_grids_are_not_filled_in(worker: Decoder) -> None:
    part = mixed(2, 1, "K---")
    worker.decode([keys(1, 0)], ["north"])
    assert isinstance(worker.decode([part], ["south"])[0], MissingKey)
    assert isinstance(worker.decode([replace(part, id=FrameId(8, 1))], ["north"])[0], MissingKey)
    assert isinstance(worker.decode([of(keys(1, 1, grid=GRIDS[1, 2]))], ["north"])[0], MissingKey)
    assert middles(mask_of(worker.decode([part], ["north"])[0])) == [2, 1, 1, 1]


def test_the_last_masks_are_those_of_so_many_cameras() -> None:
    last, packet = LastMasks(CLASSES, cameras=2), of(keys(1, 0))
    kept = {}
    for camera in ("north", "south", "east"):
        kept[camera] = read(camera, packet, BUNDLE, SimpleNamespace())  # type: ignore[arg-type]
        last.keep(kept[camera], Mask(packet.id, 0, BUNDLE.id, np.zeros((HEIGHT, WIDTH), np.uint8)))
    assert [last.of(one) is None for one in kept.values()] == [True, False, False]


def test_a_recording_of_many_names_takes_no_other_cameras_last_mask() -> None:
    last, packet = LastMasks(CLASSES, cameras=32), of(keys(1, 0))
    mask = Mask(packet.id, 0, BUNDLE.id, np.zeros((HEIGHT, WIDTH), np.uint8))
    names = ["other", *(f"recording/{steps_back}" for steps_back in range(40))]
    kept = [read(name, packet, BUNDLE, SimpleNamespace()) for name in names]  # type: ignore[arg-type]
    for reading in kept:
        last.keep(reading, mask)
    assert [at for at, reading in enumerate(kept) if last.of(reading) is not None] == [0, *range(25, 41)]


def test_with_hysteresis_a_class_stays_until_another_one_leads_by_it(graph: ClassOfLatents) -> None:
    """Here all lead by 18, but next to borders, which are interpolated."""
    for hysteresis, shown in ((17.0, 2), (20.0, 1)):
        held = Decoder(BUNDLE, graph, hysteresis=hysteresis)  # type: ignore[arg-type]
        results = decode(held, keys(1, 0), keys(2, 1), mixed(0, 2, "WWWW", age=1), mixed(3, 3, "K---"))
        found = [middles(mask_of(one)) for one in results]
        assert found == [[1] * 4, [shown] * 4, [shown] * 4, [3 if shown == 2 else 1, *[shown] * 3]]


@pytest.mark.parametrize(
    ("other", "camera", "shown"),
    [
        (keys(2, 8), "north", 1),
        (replace(keys(2, 8), captured_ms=7 * 40 + 2000), "north", 1),
        (replace(keys(2, 8), captured_ms=7 * 40 + 2001), "north", 2),
        (keys(2, 9), "north", 2),  # another worker may have shown the frame between them
        (keys(2, 6), "north", 2),
        (keys(2, 7), "north", 2),
        (keys(2, 8), "south", 2),
        (replace(keys(2, 8), id=FrameId(8, 8)), "north", 2),
        (replace(keys(2, 8), recorded=True), "north", 2),
        (keys(2, 8, grid=GRIDS[1, 2]), "north", 2),
    ],
)
def test_masks_are_held_to_that_of_the_frame_before_and_to_no_other(
    graph: ClassOfLatents, other: Packet, camera: str, shown: int
) -> None:
    held = Decoder(BUNDLE, graph, hysteresis=20.0)  # type: ignore[arg-type]
    held.decode([keys(1, 7)], ["north"])
    assert set(middles(mask_of(held.decode([other], [camera])[0]))) == {shown}


def test_sequences_that_wrap_follow_one_another(graph: ClassOfLatents) -> None:
    held = Decoder(BUNDLE, graph, hysteresis=20.0)  # type: ignore[arg-type]
    first = replace(keys(1, 0), id=FrameId(7, 2**32 - 1))
    results = decode(held, first, keys(2, 0))
    assert middles(mask_of(results[-1])) == [1] * 4


def test_what_classes_have_to_lead_by_is_told_by_the_cameras_own_masks(graph: ClassOfLatents) -> None:
    """Stripes one latent wide lie at their border by half, so that they have two thirds of the margin."""
    stripes = np.broadcast_to(np.arange(SIZE[1]) % 2, SIZE)
    for margin, shown in ((20.0, 2), (30.0, 0)):
        held = Decoder(BUNDLE, graph, hysteresis=margin)  # type: ignore[arg-type]
        found = decode(held, keys(stripes, 0), keys(2, 1))
        assert set(np.unique(mask_of(found[-1]).classes[8::16, 8::32])) == {shown}


class Poles(ClassOfLatents):
    """Of four places of class 3 one is, the others are of class 0."""

    def run(self, y_hat: np.ndarray, quality: np.ndarray) -> list[np.ndarray]:
        (logits,) = super().run(y_hat, quality)
        pole = logits[:, 3].copy()
        pole[..., np.arange(pole.shape[-1]) % 4 > 0] = -9
        logits[:, 0] = np.where(logits[:, 3] > pole, 9, logits[:, 0])
        logits[:, 3] = pole
        return [logits]


@pytest.mark.parametrize("graph", [Poles(), ClassOfLatents()])
def test_what_is_thin_and_new_comes_through(graph: ClassOfLatents) -> None:
    held = Decoder(BUNDLE, graph, hysteresis=20.0)  # type: ignore[arg-type]
    first, second = (mask_of(one).classes for one in decode(held, keys(0, 0), keys(3, 1)))
    assert (first == 0).all()
    assert (second == 3).any() == isinstance(graph, Poles)


def test_hysteresis_is_for_as_many_cameras_as_keys_are(graph: ClassOfLatents) -> None:
    for cameras, shown in ((1, 2), (2, 1)):
        held = Decoder(BUNDLE, graph, keys=KeyBuffers(cameras=cameras), hysteresis=20.0)  # type: ignore[arg-type]
        for sequence, class_ in enumerate((1, 2)):
            found = held.decode([keys(class_, sequence), keys(class_, sequence)], ["north", "south"])
        assert middles(mask_of(found[0])) == [shown] * 4


def test_a_graph_of_other_classes_than_the_bundle_is_told(graph: ClassOfLatents) -> None:
    bundle = SimpleNamespace(**{**vars(BUNDLE), "manifest": SimpleNamespace(height=HEIGHT, width=WIDTH, classes="ab")})
    with pytest.raises(ConfigError, match="logits of 5 classes, not 2; export it again"):
        Decoder(bundle, graph).decode([keys(1, 0)])  # type: ignore[arg-type]


def test_a_packet_with_one_bad_region_changes_nothing(worker: Decoder) -> None:
    good, spoilt = keys(1, 0), keys(2, 1)
    spoilt = of(spoilt, *spoilt.regions[:3], replace(spoilt.regions[3], body=spoilt.regions[3].body + b"\0"))
    results = decode(worker, good, spoilt, mixed(0, 2, "WWWW", age=1), mixed(0, 3, "WWWW", age=3))
    assert [type(one) for one in results] == [Decoded, BitstreamError, MissingKey, Decoded]
    assert middles(mask_of(results[-1])) == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("changed", "error", "why"),
    [
        ({"bundle": b"othr"}, BundleMismatch, "other|bundle"),
        ({"quality": 9}, BitstreamError, "quality 9"),
        ({"rows": 5}, BitstreamError, "at most 4x4"),
    ],
)
def test_what_cannot_be_of_this_bundle_is_refused(
    changed: dict[str, object], error: type, why: str, worker: Decoder
) -> None:
    (result,) = decode(worker, replace(keys(1, 0), **changed))  # type: ignore[arg-type]
    assert isinstance(result, error)
    assert why.split("|")[-1] in str(result)


def test_scores_are_those_of_the_newest_latents_that_are_shown(graph: ClassOfLatents) -> None:
    for session in (graph, None):
        worker = Decoder(BUNDLE, session, labels=Score())  # type: ignore[arg-type]
        packets = (keys(1, 0), mixed(1, 1, "KWWW"), mixed(1, 2, "-WWW", age=2), of(keys(1, 3), warp(0, 2), warp(1, 3)))
        results = decode(worker, *packets)
        scores = [one.scores.values[0] for one in results if isinstance(one, Decoded) and one.scores is not None]
        assert scores == [1, 2, 1, 2]
        assert all((one.mask is None) == (session is None) for one in results if isinstance(one, Decoded))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bodies=st.lists(st.binary(max_size=60), min_size=4, max_size=4),
    kinds=st.lists(st.sampled_from([K, W, D]), min_size=4, max_size=4),
)
def test_any_bodies_are_a_mask_or_a_bitstream_error(worker: Decoder, bodies: list[bytes], kinds: list[Kind]) -> None:
    regions = [
        Region(kind, at, int(kind is not K), body) for at, (kind, body) in enumerate(zip(kinds, bodies, strict=True))
    ]
    results = decode(worker, keys(1, 0), of(keys(1, 1), *regions))
    assert isinstance(results[1], Decoded | BitstreamError)


def between(classes: Sequence[int | np.ndarray], *, last: int = 5) -> list[Packet]:
    """A KEY of frame 0, the frames up to `last`, whose KEY comes ahead with the first of them, and that one's own."""
    first, later = (keys(one, at, grid=WHOLE) for one, at in zip(classes, (0, last), strict=True))
    told = [(warp(0, age, grid=WHOLE), back(last - age)) for age in range(1, last)]
    ahead = replace(later.regions[0], age=last - 1)
    heads = [replace(later, id=FrameId(7, at), captured_ms=40 * at) for at in range(1, last)]
    middle = [of(head, *regions) for head, regions in zip(heads, [(ahead, *told[0]), *told[1:]], strict=True)]
    return [first, *middle, of(later, back(0))]


def two_scenes() -> list[np.ndarray]:
    rng = np.random.default_rng(3)
    return [rng.integers(0, CLASSES, SIZE) for _ in range(2)]


def test_a_frame_between_two_keys_shows_the_nearer_and_the_later_ones_own_what_its_key_would(worker: Decoder) -> None:
    classes = two_scenes()
    masks = [mask_of(one) for one in decode(worker, *between(classes))]
    alone = Decoder(BUNDLE, ClassOfLatents())  # type: ignore[arg-type]
    fresh = [mask_of(one).classes for one in decode(alone, *(keys(one, 0, grid=WHOLE) for one in classes))]
    for mask, expected in zip(masks, [fresh[0]] * 3 + [fresh[1]] * 3, strict=True):
        np.testing.assert_array_equal(mask.classes[8::16, 8::16], expected[8::16, 8::16])
    np.testing.assert_array_equal(masks[-1].classes, fresh[1])
    assert [mask.kinds for mask in masks] == [(K,), (W,), (W,), (W,), (W,), (K,)]
    assert [(mask.id.sequence, mask.captured_ms) for mask in masks] == [(at, 40 * at) for at in range(6)]


def test_the_graph_runs_once_for_a_key_that_comes_ahead(worker: Decoder, graph: ClassOfLatents) -> None:
    decode(worker, *between((1, 2)))
    assert len(graph.given) == 2


def test_a_warp_after_it_refers_to_a_key_that_came_ahead(worker: Decoder) -> None:
    *_, last = between((1, 2))
    results = decode(worker, *between((1, 2)), of(replace(last, id=FrameId(7, 7)), warp(0, 2, grid=WHOLE)))
    assert (mask_of(results[-1]).classes == 2).all()


def test_frames_before_the_newest_key_refer_to_the_one_before_it(worker: Decoder) -> None:
    """A stream of three KEYs, two of them ahead: of each frame both are there."""
    first, more = between((1, 2), last=3), between((2, 4), last=3)
    later = [replace(one, id=FrameId(7, one.id.sequence + 3)) for one in more[1:]]
    results = decode(worker, *first, *later)
    assert [int(mask_of(one).classes[0, 0]) for one in results] == [1, 1, 2, 2, 2, 4, 4]
    assert all(isinstance(one, Decoded) and not one.missing for one in results)


def moving(at: int) -> np.ndarray:
    """Classes (h, w) of a scene that goes 16 px to the right from frame to frame."""
    world = np.random.default_rng(4).integers(0, CLASSES, (SIZE[0], 3 * SIZE[1]))
    return world[:, SIZE[1] - at :][:, : SIZE[1]]


@pytest.mark.parametrize("age", [1, 2, 3])
def test_motion_from_the_nearer_key_tells_that_from_the_other_and_each_side_what_the_other_lacks(
    age: int, worker: Decoder
) -> None:
    ahead = 4 - age
    told = (
        [warp(0, age, dx=-16 * age, grid=WHOLE), back(ahead)]
        if age <= ahead
        else [warp(0, age, grid=WHOLE), back(ahead, dx=16 * ahead)]
    )
    later = keys(moving(4), 4, grid=WHOLE)
    frame = of(replace(later, id=FrameId(7, age)), replace(later.regions[0], age=ahead), *told)
    result = decode(worker, keys(moving(0), 0, grid=WHOLE), frame)[-1]
    np.testing.assert_array_equal(mask_of(result).classes[8::16, 8::16], moving(age))


@pytest.mark.parametrize(
    ("age", "dx", "ahead", "more", "from_warp", "from_back"),
    [
        (1, 6, 3, 0, 6, -18),
        (1, 6, 3, 5, 6, -13),
        (3, 0, 1, 6, -18, 6),
        (3, 5, 1, 6, -13, 6),
        (2, 6, 2, 5, 6, -1),  # of two that are as near, the other adds to the WARP
        (2, 1, 3, 0, 1, -2),
        (3, 0, 2, -1, 1, -1),
    ],
)
def test_the_flow_from_farther_away_adds_to_what_the_nearer_one_leads_to_expect(
    age: int, dx: int, ahead: int, more: int, from_warp: int, from_back: int
) -> None:
    packet = of(keys(1, 9, grid=WHOLE), warp(0, age, dx=dx, grid=WHOLE), back(ahead, dx=more))
    parts = read("", packet, BUNDLE, KeyBuffer()).parts  # type: ignore[arg-type]
    found = [part.flow[:, 0, 0].tolist() for part in parts if part.flow is not None]
    assert found == [[from_warp, 0], [from_back, 0]]


@pytest.mark.parametrize("region", [warp(0, 3, dx=6, grid=WHOLE), back(3, dx=6)], ids=["WARP", "BACK"])
def test_a_flow_without_another_is_what_it_says(region: Region) -> None:
    (part,) = read("", of(keys(1, 9, grid=WHOLE), region), BUNDLE, KeyBuffer()).parts  # type: ignore[arg-type]
    assert part.flow is not None
    assert (part.flow[0] == 6).all()


def test_flows_that_would_add_up_to_too_much_stay_within_16_bits(worker: Decoder) -> None:
    extremes = [warp(0, 1, dx=-32768, grid=WHOLE), back(255, dx=32767)]
    packet = of(keys(1, 9, grid=WHOLE), *extremes)
    _, part = read("", packet, BUNDLE, KeyBuffer()).parts  # type: ignore[arg-type]
    assert part.flow is not None and (part.flow[0] == 32767).all()


def test_without_the_key_before_it_a_frame_shows_the_later_one_alone_and_names_what_is_missing(worker: Decoder) -> None:
    _, *rest = between((1, 2))
    assert worker.missing(rest, [""] * 5) == [(rest[at].regions[-2],) for at in range(4)] + [()]
    results = decode(worker, *rest)
    assert all((mask_of(one).classes == 2).all() for one in results)
    assert [one.missing for one in results if isinstance(one, Decoded)] == [(0,)] * 4 + [()]
    assert [mask_of(one).kinds for one in results] == [(W,)] * 4 + [(K,)]


def test_without_the_packet_that_brings_it_frames_show_the_key_before_and_its_own_frame_nothing(
    worker: Decoder,
) -> None:
    first, _, *rest = between((1, 2))
    assert worker.missing([first, *rest], [""] * 5) == [(), *((one.regions[-1],) for one in rest)]
    results = decode(worker, first, *rest)
    assert [(mask_of(one).classes == 1).all() for one in results[:-1]] == [True] * 4
    assert [one.missing for one in results if isinstance(one, Decoded)] == [(), (0,), (0,), (0,)]
    assert isinstance(results[-1], MissingKey)
    assert "region 0: the key of epoch 7, sequence 5" in str(results[-1])


def test_without_either_key_a_frame_is_missing_one(worker: Decoder) -> None:
    _, _, third, *_ = between((1, 2))
    (result,) = decode(worker, third)
    assert isinstance(result, MissingKey)
    assert worker.missing([third], [""]) == [third.regions]


def test_a_key_ahead_by_itself_shows_nothing_but_is_there(worker: Decoder) -> None:
    """As the queue's server stores it."""
    first, second, third, *_, last = between((1, 2))
    alone = of(second, second.regions[0])
    (shown,) = decode(worker, alone)
    assert isinstance(shown, MissingKey)
    assert worker.missing([last], [""]) == [()]
    results = decode(worker, last, of(third, third.regions[-1]), first, of(third, *third.regions))
    assert [int(mask_of(one).classes[0, 0]) for one in results] == [2, 2, 1, 1]
    assert isinstance(results[-1], Decoded) and results[-1].missing == ()


def test_after_a_mask_a_key_ahead_by_itself_leaves_that_as_it_is(worker: Decoder) -> None:
    first, second, third, *_ = between((1, 2))
    shown = decode(worker, first, of(second, second.regions[0]), of(third, third.regions[-1]))
    assert [int(mask_of(one).classes[0, 0]) for one in shown] == [1, 1, 2]
    assert mask_of(shown[1]).kinds == (None,)


def test_the_latents_of_a_packet_are_those_of_its_own_frame(worker: Decoder) -> None:
    first, second, *_, last = between((1, 2))
    assert worker.y_hat(first).shape == (coding.LATENTS, *SIZE)
    for other in (second, of(second, second.regions[0])):
        with pytest.raises(BitstreamError, match="not a KEY of all of its frame"):
            worker.y_hat(other)
    with pytest.raises(BitstreamError, match="not a KEY of all of its frame"):
        worker.y_hat(last)


def test_a_back_to_its_own_frame_with_a_body_is_refused(worker: Decoder) -> None:
    *stream, last = between((1, 2))
    wrong = of(last, replace(last.regions[0], body=b"\0"))
    *_, refused, shown = decode(worker, *stream, wrong, last)
    assert isinstance(refused, BitstreamError)
    assert "has nothing to say" in str(refused)
    assert (mask_of(shown).classes == 2).all()


def test_a_spoilt_body_of_a_frame_between_changes_nothing(worker: Decoder) -> None:
    """Whichever part it is of: no key is taken over from a packet that is none."""
    first, second, third, *_ = between((1, 2))
    for at in range(3):
        spoilt = [
            replace(one, body=one.body + b"\0") if place == at else one for place, one in enumerate(second.regions)
        ]
        _, refused, shown = decode(worker, first, of(second, *spoilt), third)
        assert isinstance(refused, BitstreamError)
        assert isinstance(shown, Decoded) and shown.missing == (0,)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    bodies=st.lists(st.none() | st.binary(max_size=60), min_size=3, max_size=3),
    ages=st.lists(st.integers(1, 255), min_size=3, max_size=3),
    present=st.sampled_from([(0,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]),
)
def test_any_bodies_between_two_keys_are_a_mask_or_an_error(
    worker: Decoder, bodies: list[bytes | None], ages: list[int], present: tuple[int, ...]
) -> None:
    first, second, *_ = between((1, 2))
    parts = zip(second.regions, bodies, ages, strict=True)
    regions = [replace(one, age=age, body=one.body if body is None else body) for one, body, age in parts]
    results = decode(worker, first, of(second, *(regions[at] for at in present)))
    assert isinstance(results[1], Decoded | BitstreamError | MissingKey)


def bidirectional_stream() -> list[Packet]:
    """Thirteen frames, four KEYs of one scene each, the last three of which come ahead."""
    rng = np.random.default_rng(9)
    scenes = [rng.integers(0, CLASSES, SIZE) for _ in range(4)]
    packets = [keys(scenes[0], 0, grid=WHOLE)]
    for start, scene in zip((0, 4, 8), scenes[1:], strict=True):
        run = between((scene, scene), last=4)[1:]
        packets += [replace(one, id=FrameId(7, start + one.id.sequence)) for one in run]
    return packets


def test_a_batch_of_frames_between_keys_gives_what_its_packets_give_alone(worker: Decoder) -> None:
    packets = bidirectional_stream()
    assert worker.missing(packets, [""] * 13) == [()] * 13
    alone = decode(Decoder(BUNDLE, ClassOfLatents()), *packets)  # type: ignore[arg-type]
    for one, other in zip(worker.decode(packets), alone, strict=True):
        np.testing.assert_array_equal(mask_of(one).classes, mask_of(other).classes)
        assert mask_of(one).kinds == mask_of(other).kinds


@pytest.mark.parametrize("seed", range(6))
def test_repeated_late_and_lost_frames_between_keys_never_show_a_wrong_key(seed: int, worker: Decoder) -> None:
    """What is shown is right, or what one of its two keys shows, and then the other one is named."""
    packets, rng = bidirectional_stream(), random.Random(seed)
    right = [mask_of(one) for one in decode(Decoder(BUNDLE, ClassOfLatents()), *packets)]  # type: ignore[arg-type]
    come = [packets[0], *(packets[min(max(round(at + rng.gauss(0, 2)), 0), 12)] for at in range(1, 13))]
    named = 0
    for packet, result in zip(come, decode(worker, *come), strict=True):
        if isinstance(result, MissingKey):
            continue
        assert isinstance(result, Decoded)
        mask, key = mask_of(result), packet.id.sequence // 4 * 4
        allowed = [right[at].classes for at in (key, min(key + 4, 12))] if result.missing else []
        expected = [right[packet.id.sequence].classes] if not result.missing else allowed
        assert any(np.array_equal(mask.classes[8::16, 8::16], one[8::16, 8::16]) for one in expected)
        named += len(result.missing)
    assert named


def test_scores_of_a_frame_between_two_keys_are_those_of_the_nearer_latents() -> None:
    for session in (ClassOfLatents(), None):
        worker = Decoder(BUNDLE, session, labels=Score())  # type: ignore[arg-type]
        results = decode(worker, *between((1, 2)))
        scores = [one.scores.values[0] for one in results if isinstance(one, Decoded) and one.scores is not None]
        assert scores == [1, 1, 1, 2, 2, 2]
        assert all((one.mask is None) == (session is None) for one in results if isinstance(one, Decoded))


def test_the_golden_regions_keep_their_meaning() -> None:
    """golden/regions.bin: a 2x2 grid, KEY of sequence 9, WARP of ages 3 and 1, KEY."""
    sent = (GOLDEN / "regions.bin").read_bytes()
    packet = unpack(sent)
    assert pack(packet) == sent
    assert [(one.kind, one.index, one.age) for one in packet.regions] == [(K, 0, 0), (W, 1, 3), (W, 2, 1), (K, 3, 0)]
    for index in (0, 3):
        place = GRID.places[index].core
        read_back = decode_latents(packet.regions[index].body, BUNDLE.tables, SIZE, packet.quality, cells_of(place))
        y_hat = read_back.symbols + read_back.prediction.means
        assert (y_hat[:CLASSES].argmax(0) == golden_classes()[place.at(16)]).all()
    for index, dx in ((1, 5), (2, -3)):
        nodes = grid_of(GRID.places[index].picture.height, GRID.places[index].picture.width)
        flow = node_flow(decode_flow(packet.regions[index].body, nodes), nodes)
        assert (flow[0] == dx).all() and (flow[1] == 0).all()
    assert golden_packet() == packet


def golden_classes() -> np.ndarray:
    return np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % CLASSES


def golden_packet() -> Packet:
    fresh = keys(golden_classes(), 9)
    return of(fresh, fresh.regions[0], warp(1, 3, dx=5), warp(2, 1, dx=-3), fresh.regions[3])
