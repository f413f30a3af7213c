"""Keys that are elsewhere: found in the queue's server if they are the right ones, else asked for, and nobody waits."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from channels import quiet, take
from prometheus_client import REGISTRY
from street import INTERVAL, bundle, classes_of, decoder, moved, packets, packets_between

from nodes.control import read_control
from nodes.gateway import admit
from nodes.key_fetching import FetchingDecoder, KeyName, KeyRequests, pack_key_request
from nodes.service import Lane
from pipeline.bitstream import pack
from pipeline.errors import MissingKey, PipelineError, TransportError
from pipeline.keys import Stream
from pipeline.memory_queue import MemoryQueueState, MemoryWorkQueue
from pipeline.messages import Decoded, FrameId, KeyRequest, Kind, Packet, Region
from pipeline.transport import Message
from pipeline.transport.memory import MemoryBroker, MemoryChannel


@dataclass(frozen=True, slots=True, eq=False)
class Street:
    """Two keys, five frames apart, and the packet behind each."""

    key: Packet
    warp: Packet
    next_key: Packet
    next_warp: Packet


@pytest.fixture(scope="module")
def street() -> Street:
    made = packets(2 * INTERVAL)
    return Street(*made[:2], *made[INTERVAL : INTERVAL + 2])


class Bench:
    """A worker's decoder over a queue in memory, and what its cameras hear."""

    def __init__(self, queue: MemoryWorkQueue, channel: MemoryChannel, lane: Lane) -> None:
        self.queue, self.channel, self.lane = queue, channel, lane
        self.decoder = self.another()
        self.heard: AsyncIterator[Message] = channel.subscribe("+/control")

    def another(self, queue: MemoryWorkQueue | None = None) -> FetchingDecoder:
        """The decoder of another worker."""
        return FetchingDecoder(decoder(), self.lane, queue=queue or self.queue, requests=KeyRequests(self.channel))

    async def take_in(self, *packets: Packet, camera: str = "cam-1") -> None:
        """Store keys as a gateway does."""
        for packet in packets:
            arrived = admit(Message(f"{camera}/latent", pack(packet)))
            if arrived.keys:
                await self.queue.store_keys(camera, arrived.keys, generations=arrived.generations)

    async def store(self, *packets: Packet, camera: str = "cam-1") -> None:
        for packet in packets:
            await self.queue.store_keys(camera, {region.index: pack(packet) for region in packet.regions})


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    async with (
        MemoryWorkQueue(MemoryQueueState(), "w") as queue,
        MemoryChannel(MemoryBroker()) as channel,
        Lane("decoder") as lane,
    ):
        yield Bench(queue, channel, lane)


def spoiled(region: Region) -> Region:
    """The region with a byte that no encoder writes."""
    return replace(region, body=region.body + b"\x00")


def lookups() -> dict[str, float]:
    places = ("local", "fetched", "missing")
    return {place: REGISTRY.get_sample_value("maskcast_key_lookups_total", {"where": place}) or 0 for place in places}


def added(before: dict[str, float]) -> dict[str, float]:
    return {place: count - before[place] for place, count in lookups().items()}


def is_mask_of(result: Decoded | PipelineError, packet: Packet) -> bool:
    """Whether this is what an undisturbed decoder makes of one of the street's packets."""
    assert isinstance(result, Decoded) and result.mask is not None, result
    return np.array_equal(result.mask.classes, classes_of(packets(2 * INTERVAL))[packet.id.sequence])


async def test_a_key_that_is_here_is_not_fetched(bench: Bench, street: Street) -> None:
    before = lookups()
    first, second = await bench.decoder.decode([street.key, street.warp], ["cam-1"] * 2)
    (third,) = await bench.decoder.decode([street.warp], ["cam-1"])
    assert is_mask_of(first, street.key) and is_mask_of(second, street.warp) and is_mask_of(third, street.warp)
    assert added(before) == {"local": 2, "fetched": 0, "missing": 0}


async def test_a_key_of_another_worker_is_fetched_once(bench: Bench, street: Street) -> None:
    await bench.store(street.key)
    before = lookups()
    assert all(
        is_mask_of(each, street.warp) for each in await bench.decoder.decode([street.warp, street.warp], ["cam-1"] * 2)
    )
    assert is_mask_of((await bench.decoder.decode([street.warp], ["cam-1"]))[0], street.warp)
    assert added(before) == {"local": 2, "fetched": 1, "missing": 0}
    assert await quiet(bench.heard)


async def test_the_key_before_the_newest_is_found_too(bench: Bench, street: Street) -> None:
    await bench.store(street.key, street.next_key)
    first, second = await bench.decoder.decode([street.warp, street.next_warp], ["cam-1"] * 2)
    assert is_mask_of(first, street.warp) and is_mask_of(second, street.next_warp)


async def test_a_batch_of_several_cameras_gets_the_keys_of_each(bench: Bench, street: Street) -> None:
    await bench.store(street.key)
    await bench.store(moved(street.key, epoch=9), camera="cam-2")
    made = [street.warp, moved(street.warp, epoch=9), street.warp]
    first, second, third = await bench.decoder.decode(made, ["cam-1", "cam-2", "cam-3"])
    assert is_mask_of(first, street.warp) and is_mask_of(second, street.warp)
    assert isinstance(third, MissingKey)
    assert [message.topic for message in await take(bench.heard)] == ["cam-3/control"]


@pytest.mark.parametrize(
    "stored",
    [
        lambda street: moved(street.key, by=1),
        lambda street: moved(street.key, epoch=8),
        lambda street: replace(street.key, bundle=b"othr"),
        lambda street: replace(street.key, rows=1, columns=2),
        lambda street: replace(street.warp, id=street.key.id),
        lambda street: replace(street.key, regions=(spoiled(street.key.regions[0]),)),
    ],
    ids=["sequence", "epoch", "bundle", "grid", "kind", "body"],
)
async def test_a_key_that_is_not_the_one_named_is_never_used(
    bench: Bench, street: Street, stored: Callable[[Street], Packet]
) -> None:
    await bench.store(stored(street))
    before = lookups()
    (result,) = await bench.decoder.decode([street.warp], ["cam-1"])
    assert isinstance(result, MissingKey)
    assert added(before) == {"local": 0, "fetched": 0, "missing": 1}
    assert len(await take(bench.heard)) == 1


async def test_bytes_that_are_no_packet_are_no_key(bench: Bench, street: Street) -> None:
    await bench.queue.store_keys("cam-1", {0: b"noise"})
    (result,) = await bench.decoder.decode([street.warp], ["cam-1"])
    assert isinstance(result, MissingKey)


async def test_a_packet_of_another_bundle_asks_for_nothing(bench: Bench, street: Street) -> None:
    (result,) = await bench.decoder.decode([replace(street.warp, bundle=b"othr")], ["cam-1"])
    assert not isinstance(result, Decoded | MissingKey)
    assert await quiet(bench.heard)


async def test_a_key_found_nowhere_is_asked_of_its_camera_and_the_batch_goes_on(bench: Bench, street: Street) -> None:
    lost, key, warp = await bench.decoder.decode([street.warp, street.next_key, street.next_warp], ["cam-1"] * 3)
    assert isinstance(lost, MissingKey)
    assert is_mask_of(key, street.next_key) and is_mask_of(warp, street.next_warp)
    (message,) = await take(bench.heard)
    assert (message.topic, json.loads(message.payload)) == ("cam-1/control", {"key": [0]})


class NothingShown:
    """A decoder that has no mask yet in which the regions that a packet leaves out could stand."""

    def missing(self, packets: Sequence[Packet], cameras: Sequence[str]) -> list[tuple[Region, ...]]:
        return [()] * len(packets)

    def decode(self, packets: Sequence[Packet], cameras: Sequence[str]) -> list[Decoded | PipelineError]:
        return [MissingKey("region 1: neither in the packet nor in a mask before it")] * len(packets)


async def test_regions_that_a_packet_leaves_out_and_no_mask_shows_are_asked_for(bench: Bench, street: Street) -> None:
    part = replace(street.warp, rows=2, columns=2)
    requests = KeyRequests(bench.channel)
    worker = FetchingDecoder(NothingShown(), bench.lane, queue=bench.queue, requests=requests)  # type: ignore[arg-type]
    await worker.decode([part, part], ["cam-1"] * 2)
    await worker.decode([part], ["cam-1"])
    assert [message.payload for message in await take(bench.heard)] == [b'{"key": [1, 2, 3]}']
    assert await quiet(bench.heard)


async def test_a_key_whose_packet_cannot_be_decoded_is_asked_for(bench: Bench, street: Street) -> None:
    broken = replace(street.key, regions=(spoiled(street.key.regions[0]),))
    results = await bench.decoder.decode([broken, street.warp], ["cam-1"] * 2)
    assert not any(isinstance(result, Decoded) for result in results)
    assert len(await take(bench.heard)) == 1


async def test_a_key_that_comes_behind_its_warp_is_not_asked_for(bench: Bench, street: Street) -> None:
    late, key = await bench.decoder.decode([street.warp, street.key], ["cam-1"] * 2)
    assert isinstance(late, MissingKey) and isinstance(key, Decoded)
    assert await quiet(bench.heard)


class SilentQueue(MemoryWorkQueue):
    """Its server does not answer, or says that it is gone."""

    def __init__(self, state: MemoryQueueState, error: Exception | None) -> None:
        super().__init__(state, "w")
        self._error = error

    async def fetch_keys(self, camera: str, regions: Collection[int]) -> dict[int, tuple[bytes, ...]]:
        if self._error is not None:
            raise self._error
        await asyncio.sleep(60)
        return {}


@pytest.mark.parametrize("error", [None, TransportError("redis is gone")])
async def test_a_server_that_is_away_holds_nobody_up(bench: Bench, street: Street, error: Exception | None) -> None:
    worker = bench.another(SilentQueue(MemoryQueueState(), error))
    await worker.decode([street.key], ["cam-2"])
    async with asyncio.timeout(2):
        lost, good = await worker.decode([street.warp, street.warp], ["cam-1", "cam-2"])
    assert isinstance(lost, MissingKey) and is_mask_of(good, street.warp)
    assert len(await take(bench.heard)) == 1


class Clock:
    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def name(sequence: int, *, region: int = 0, camera: str = "cam-1") -> KeyName:
    return KeyName(camera, Stream(7, b"abcd", 2, 3), region, sequence)


async def test_a_missing_key_is_asked_for_now_and_then_not_each_time(bench: Bench) -> None:
    clock = Clock()
    requests = KeyRequests(bench.channel, clock=clock)
    for at_s, expected in ((0.0, 1), (0.1, 0), (0.4, 0), (0.6, 1), (0.7, 0)):
        clock.now_s = 100.0 + at_s
        await requests.ask([name(3)])
        assert len(await take(bench.heard, expected)) == expected
        assert await quiet(bench.heard, 0.02)


async def test_another_key_that_is_missing_is_asked_for_at_once(bench: Bench) -> None:
    requests = KeyRequests(bench.channel, clock=Clock())
    for sequence in (3, 5):
        await requests.ask([name(sequence)])
        assert len(await take(bench.heard)) == 1


async def test_the_regions_of_a_camera_are_asked_for_in_one_message(bench: Bench) -> None:
    requests = KeyRequests(bench.channel, clock=Clock())
    await requests.ask([name(3, region=4), name(2, region=1), name(3, region=1), name(3, camera="cam-2")])
    said = {message.topic: message.payload for message in await take(bench.heard, 2)}
    assert said == {"cam-1/control": b'{"key": [1, 4]}', "cam-2/control": b'{"key": [0]}'}


async def test_a_request_that_cannot_leave_stops_nobody(bench: Bench) -> None:
    async with MemoryChannel(MemoryBroker()) as channel:
        requests = KeyRequests(channel)
    await requests.ask([name(3)])


def test_a_camera_reads_what_a_worker_asks() -> None:
    control = read_control(pack_key_request(KeyRequest("cam-1", (0, 3))), levels=frozenset(), unfit={})
    assert control.key == (0, 3)


def test_the_street_is_what_these_tests_take_it_for(street: Street) -> None:
    kinds = [[region.age for region in packet.regions] for packet in packets(2 * INTERVAL)]
    assert kinds == [[age] for age in range(INTERVAL)] * 2
    assert (street.key.id, street.key.bundle) == (FrameId(7, 0), bundle().id)


def recorded(packet: Packet) -> Packet:
    return replace(packet, recorded=True)


async def test_a_recording_that_steps_back_finds_keys_that_are_older_than_those_here(bench: Bench) -> None:
    made = packets(4 * INTERVAL)
    keys, warp = made[::INTERVAL], made[1]
    for key in keys:
        await bench.queue.store_keys("cam-1", {0: pack(key)}, generations=8)
    await bench.decoder.decode(keys[1:], ["cam-1"] * 3)
    assert isinstance((await bench.decoder.decode([recorded(warp)], ["cam-1"]))[0], MissingKey)
    await take(bench.heard)
    (result,) = await bench.decoder.decode([recorded(warp)], ["cam-1/1"])
    assert is_mask_of(result, warp)
    assert await quiet(bench.heard)
    await bench.decoder.decode([replace(recorded(warp), id=FrameId(9, 1))], ["cam-2/1"])
    assert [message.topic for message in await take(bench.heard)] == ["cam-2/control"]


@pytest.fixture(scope="module")
def between() -> Sequence[Packet]:
    """A KEY, the frames to the next one and that one, the same again."""
    made = packets_between(2 * INTERVAL + 1)
    assert ["".join(one.kind.name[0] for one in packet.regions) for packet in made] == [
        "K", *2 * ["KWB", *["WB"] * (INTERVAL - 2), "B"],
    ]  # fmt: skip
    return made


def is_right(result: Decoded | PipelineError, packet: Packet) -> bool:
    """Whether this is what an undisturbed decoder makes of one of the packets between keys."""
    assert isinstance(result, Decoded) and result.mask is not None, result
    expected = classes_of(packets_between(2 * INTERVAL + 1))[packet.id.sequence]
    return result.missing == () and np.array_equal(result.mask.classes, expected)


async def test_a_frame_between_two_keys_finds_both_and_their_frames_behind_them(
    bench: Bench, between: Sequence[Packet]
) -> None:
    await bench.take_in(*between[:3])
    before = lookups()
    (third,) = await bench.decoder.decode([between[2]], ["cam-1"])
    assert is_right(third, between[2])
    assert added(before) == {"local": 0, "fetched": 2, "missing": 0}
    results = await bench.decoder.decode(between[3:], ["cam-1"] * len(between[3:]))
    assert all(map(is_right, results, between[3:]))
    assert added(before)["fetched"] == 2 and not added(before)["missing"]
    assert await quiet(bench.heard)


async def test_a_key_that_its_packet_brings_ahead_is_not_fetched(bench: Bench, between: Sequence[Packet]) -> None:
    await bench.take_in(*between[:2])
    before = lookups()
    (second,) = await bench.decoder.decode([between[1]], ["cam-1"])
    assert is_right(second, between[1])
    assert added(before) == {"local": 1, "fetched": 1, "missing": 0}


async def test_a_frame_behind_the_next_key_that_came_ahead_still_finds_its_own(
    bench: Bench, between: Sequence[Packet]
) -> None:
    """A worker that takes over when the gateway has had the second KEY ahead: three are stored."""
    await bench.take_in(*between[: INTERVAL + 2])
    results = await bench.decoder.decode(between[2 : INTERVAL + 1], ["cam-1"] * (INTERVAL - 1))
    assert all(map(is_right, results, between[2 : INTERVAL + 1]))
    assert await quiet(bench.heard)


async def test_of_two_keys_the_one_that_is_nowhere_is_asked_for_and_the_frame_shown_by_the_other(
    bench: Bench, between: Sequence[Packet]
) -> None:
    await bench.take_in(between[0])
    before = lookups()
    (third,) = await bench.decoder.decode([between[2]], ["cam-1"])
    assert isinstance(third, Decoded) and third.mask is not None
    assert (third.missing, third.mask.kinds) == ((0,), (Kind.WARP,))
    assert added(before) == {"local": 0, "fetched": 1, "missing": 1}
    assert [message.payload for message in await take(bench.heard)] == [b'{"key": [0]}']


async def test_a_key_before_a_frame_that_the_one_after_it_shows_is_not_asked_for(
    bench: Bench, between: Sequence[Packet]
) -> None:
    """No frame after the newer key refers to it; a recording's frame waits for it."""
    (live,) = await bench.decoder.decode([between[1]], ["cam-1"])
    assert isinstance(live, Decoded) and live.mask is not None
    assert live.missing == (0,)
    assert await quiet(bench.heard)
    (kept,) = await bench.another().decode([recorded(between[1])], ["cam-1"])
    assert isinstance(kept, MissingKey)
    assert [message.payload for message in await take(bench.heard)] == [b'{"key": [0]}']


async def test_a_recordings_frame_between_two_keys_is_shown_with_both_or_not(
    bench: Bench, between: Sequence[Packet]
) -> None:
    for stored in (between[0], between[1]):
        (third,) = await bench.another().decode([recorded(between[2])], ["cam-1"])
        assert isinstance(third, MissingKey)
        await bench.take_in(recorded(stored))
    (third,) = await bench.another().decode([recorded(between[2])], ["cam-1"])
    assert is_right(third, between[2])


async def test_a_key_ahead_that_is_of_another_frame_is_never_used(bench: Bench, between: Sequence[Packet]) -> None:
    ahead, *_ = between[1].regions
    for wrong in (replace(ahead, age=ahead.age - 1), replace(ahead, age=0)):
        await bench.take_in(replace(between[1], regions=(wrong,)))
    (last,) = await bench.decoder.decode([between[INTERVAL]], ["cam-1"])
    assert isinstance(last, MissingKey)
    assert len(await take(bench.heard)) == 1


def test_a_key_ahead_has_the_name_of_its_own_frame(between: Sequence[Packet]) -> None:
    stream = Stream(7, bundle().id, 1, 1)
    of = {sequence: KeyName("cam-1", stream, 0, sequence).is_of(between[1]) for sequence in range(INTERVAL + 2)}
    assert [sequence for sequence, found in of.items() if found] == [INTERVAL]
