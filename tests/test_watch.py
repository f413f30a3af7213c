"""What `maskcast watch` shows in a terminal, prints to a pipe and saves."""

import asyncio
import io
import json
import os
import shlex
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import REGISTRY
from rich.console import Console
from servers import free_port
from structlog.testing import capture_logs

from nodes.service import Lane
from nodes.watch import Watch, follow, main, picture, table
from pipeline.config import ViewerSettings
from pipeline.errors import ConfigError, TransportError
from pipeline.mask_image import pack_mask
from pipeline.messages import FrameId, Mask
from pipeline.transport import STATE, Channel, Message, open_channel
from pipeline.transport.memory import MemoryBroker, MemoryChannel, process_broker

PALETTE = np.array([[128, 128, 128], [128, 64, 128]], np.uint8)
HASH = "0a0b0c0d" + "0" * 56
MANIFEST = {
    "hash": HASH,
    "classes": [{"name": "sky", "colour": [128, 128, 128]}, {"name": "road", "colour": [128, 64, 128]}],
}
STATS = {
    "fps": 25.0,
    "kbit_s": 34.25,
    "latency_p50_ms": 21.0,
    "latency_p95_ms": 40.4,
    "drops": {"late": 3},
    "share": {"sky": 0.25, "road": 0.75},
}
STATS_LINE = "cam-1  online  25.0 fps  34.2 kbit/s  p50 21 ms  p95 40 ms  drops 3  road 75%  sky 25%"


def mask_png(camera: str = "cam-1", sequence: int = 1) -> bytes:
    classes = np.zeros((24, 32), np.uint8)
    classes[6:] = 1
    return pack_mask(Mask(FrameId(7, sequence), 1_000_000, bytes.fromhex("0a0b0c0d"), classes), camera, PALETTE)


def terminal(width: int = 160, height: int = 50) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, color_system="truecolor", width=width, height=height)


def pipe() -> Console:
    return Console(file=io.StringIO(), width=40)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def files_in(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


@pytest.fixture
async def watch() -> AsyncIterator[Watch]:
    async with Lane("watch") as lane:
        yield Watch(lane=lane)


async def take(watch: Watch, topic: str, content: bytes | dict[str, object]) -> str | None:
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    return await watch.take(Message(topic, payload))


@asynccontextmanager
async def cameras(broker: str, *names: str) -> AsyncIterator[ViewerSettings]:
    """Cameras that publish all the time; gives the settings with which to watch them."""
    async with MemoryChannel(process_broker(broker)) as channel, asyncio.TaskGroup() as tasks:
        await channel.publish(f"bundle/{HASH}", json.dumps(MANIFEST).encode(), STATE)
        running = [tasks.create_task(publish(channel, name)) for name in names]
        yield ViewerSettings(mqtt_url=f"memory://{broker}")
        for task in running:
            task.cancel()


async def publish(channel: Channel, name: str) -> None:
    await channel.publish(f"{name}/state", b'{"state": "online"}', STATE)
    sequence = 0
    while True:
        sequence += 1
        await channel.publish(f"{name}/stats", json.dumps(STATS).encode())
        await channel.publish(f"{name}/mask", mask_png(name, sequence))
        await asyncio.sleep(0.01)


async def test_masks_are_saved_exactly_as_they_came_and_count_ends_it(tmp_path: Path) -> None:
    async with cameras("watch-save", "cam-1") as settings, asyncio.timeout(10):
        await main(settings, save=tmp_path / "new" / "folder", count=3, console=pipe())
    files = files_in(tmp_path / "new" / "folder")
    assert len(files) == 3
    for file in files:
        name, epoch, sequence = file.stem.rsplit("-", 2)
        assert (name, epoch, file.suffix) == ("cam-1", "7", ".png")
        assert file.read_bytes() == mask_png(sequence=int(sequence))


async def test_a_mask_that_comes_again_is_neither_saved_nor_counted_and_one_that_was_missing_is(tmp_path: Path) -> None:
    async with Lane("watch") as lane:
        watch = Watch(lane=lane, save=tmp_path)
        for sequence in (1, 2, 4, 2, 3, 4):
            await take(watch, "cam-1/mask", mask_png(sequence=sequence))
    assert [file.name for file in files_in(tmp_path)] == [f"cam-1-7-{sequence:06}.png" for sequence in (1, 2, 3, 4)]
    assert (watch.masks, watch.cameras["cam-1"].masks) == (4, 4)
    newest = watch.cameras["cam-1"].mask
    assert newest is not None and newest.id.sequence == 4


async def test_a_pipe_gets_one_plain_line_per_report() -> None:
    console = pipe()
    async with cameras("watch-pipe", "cam-1") as settings, asyncio.timeout(10):
        await main(settings, count=3, console=console)
    lines = written(console).splitlines()
    assert lines[0] == "cam-1  online"
    assert STATS_LINE in lines
    assert lines[-1] == "3 masks seen"
    assert "\x1b" not in written(console)


async def test_a_terminal_gets_a_table_in_place() -> None:
    console = terminal()
    async with cameras("watch-terminal", "cam-1", "cam-2") as settings, asyncio.timeout(10):
        await main(settings, count=40, console=console)
    shown = written(console)
    assert all(word in shown for word in ("cam-1", "cam-2", "online", "34.2", "road"))
    assert "\x1b[?25h" in shown  # the cursor is back


async def test_only_the_camera_asked_for_is_watched(tmp_path: Path) -> None:
    async with cameras("watch-one", "cam-1", "cam-2") as settings, asyncio.timeout(10):
        await main(settings, camera="cam-2", save=tmp_path, count=3, console=pipe())
    assert {file.name[:5] for file in files_in(tmp_path)} == {"cam-2"}


async def test_broker_that_is_not_there_is_said_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.watch._CONNECT_TIMEOUT_S", 0.5)
    port = free_port()
    with pytest.raises(TransportError, match=f"127.0.0.1:{port}"):
        await main(ViewerSettings(mqtt_url=f"mqtt://127.0.0.1:{port}"), console=pipe())


async def test_masks_come_through_a_real_broker(mqtt_url: str, tmp_path: Path) -> None:
    async with open_channel(mqtt_url, root="watch-test") as channel, asyncio.TaskGroup() as tasks:
        await channel.wait_connected(5)
        sending = tasks.create_task(publish(channel, "cam-1"))
        settings = ViewerSettings(mqtt_url=mqtt_url, mqtt={"root": "watch-test"})  # type: ignore[arg-type]
        async with asyncio.timeout(10):
            await main(settings, save=tmp_path, count=2, console=pipe())
        sending.cancel()
    assert len(files_in(tmp_path)) == 2


async def test_name_that_is_no_cameras_is_refused() -> None:
    with pytest.raises(ConfigError, match="camera name 'Cam 1'"):
        await main(ViewerSettings(), camera="Cam 1")


async def test_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot save masks there"):
        await main(ViewerSettings(), save=tmp_path / "file" / "folder")


async def test_picture_that_cannot_be_written_ends_the_watch(tmp_path: Path) -> None:
    async with Lane("watch") as lane:
        with pytest.raises(ConfigError, match="cannot be written"):
            await take(Watch(lane=lane, save=tmp_path / "gone"), "cam-1/mask", mask_png())


@pytest.mark.parametrize(
    ("topic", "payload"),
    [
        ("cam-1/mask", b"no mask"),
        ("cam-1/mask", mask_png("cam-2")),
        ("cam-1/mask", mask_png()[:-3]),
        ("cam-1/labels", b'{"labels": []}'),
        ("cam-1/stats", b'{"share": {"\\u001b[31m": 1}}'),
        ("cam-1/state", b"{}"),
        ("Cam 1/state", b'{"state": "online"}'),
        ("bundle/00", b"[]"),
        ("bundle/00", json.dumps(MANIFEST).encode()),
    ],
)
async def test_what_is_wrong_is_dropped_and_counted(watch: Watch, topic: str, payload: bytes) -> None:
    labels = {"node": "watch", "reason": topic.partition("/")[2] if "bundle" not in topic else "bundle"}
    before = REGISTRY.get_sample_value("maskcast_drops_total", labels) or 0
    assert await take(watch, topic, payload) is None
    assert REGISTRY.get_sample_value("maskcast_drops_total", labels) == before + 1
    assert watch.masks == 0


async def test_state_is_told_when_it_changes(watch: Watch) -> None:
    said = [await take(watch, "cam-1/state", {"state": state}) for state in ("online", "online", "offline")]
    assert said == ["cam-1  online", None, "cam-1  offline"]
    await take(watch, "cam-1/state", b"")
    assert watch.cameras == {}


async def test_what_a_camera_lacks_and_what_it_refused_is_told_once(watch: Watch) -> None:
    states = [
        {"source": "ok"},
        {"source": "lost"},
        {"source": "lost", "refused": "control: no"},
        {"source": "lost", "refused": "control: no"},
        {"source": "ok", "control": {"pause": True}},
        {"source": "waiting"},
    ]
    said = [await take(watch, "cam-1/state", {"state": "online", **state}) for state in states]
    assert said == [
        "cam-1  online",
        "cam-1  online, source lost",
        "cam-1  online, source lost  refused: control: no",
        None,
        "cam-1  online, paused",
        "cam-1  online, no source yet",
    ]


async def test_cameras_are_bounded(watch: Watch) -> None:
    for number in range(100):
        await take(watch, f"cam-{number}/state", {"state": "online"})
    assert len(watch.cameras) == 64


async def test_legends_are_bounded_and_forgotten(watch: Watch) -> None:
    for number in range(100):
        await take(watch, f"bundle/{number:064x}", {**MANIFEST, "hash": f"{number:064x}"})
    assert list(watch.legends) == [f"{number:064x}" for number in range(36, 100)]  # the newest
    await take(watch, f"bundle/{99:064x}", b"")
    assert f"{99:064x}" not in watch.legends


async def test_table_shows_age_state_and_the_picture_in_its_colours(watch: Watch) -> None:
    await take(watch, f"bundle/{HASH}", MANIFEST)
    await take(watch, "cam-1/state", {"state": "offline"})
    await take(watch, "cam-1/stats", STATS)
    await take(watch, "cam-1/mask", mask_png())
    console = terminal()
    console.print(table(watch, now_ms=1_012_300, size=console.size))
    shown = written(console)
    assert all(word in shown for word in ("offline", "12.3s", "75% road", "25% sky"))
    assert "38;2;128;128;128;48;2;128;64;128" in shown  # sky above, road below, in one character


@pytest.mark.parametrize(("width", "height"), [(160, 10), (80, 50)])
async def test_small_terminal_gets_no_pictures(watch: Watch, width: int, height: int) -> None:
    await take(watch, f"bundle/{HASH}", MANIFEST)
    await take(watch, "cam-1/mask", mask_png())
    console = terminal(width, height)
    console.print(table(watch, now_ms=1_000_000, size=console.size))
    assert "\u2580" not in written(console)


def test_a_mask_that_is_as_thin_as_a_hair_is_not_drawn() -> None:
    tall = Mask(FrameId(1, 0), 0, bytes(4), np.zeros((1 << 24, 1), np.uint8))
    assert not picture(tall, {"road": "#804080"}).plain


async def test_everything_fits_into_80_columns(watch: Watch) -> None:
    await take(watch, "station-road/state", {"state": "offline"})
    await take(watch, "station-road/stats", {**STATS, "share": {"pedestrian": 0.75}})
    await take(watch, "station-road/mask", mask_png("station-road"))
    console = Console(file=io.StringIO(), width=80)
    console.print(table(watch, now_ms=1_099_900, size=console.size))
    words = ("station-road", "offline", "25.0", "34.2", "21/40 ms", "3", "99.9s", "75% pedestrian")
    assert all(word in written(console) for word in words)


LABELS = {
    "epoch": 7, "sequence": 1, "captured_ms": 1_000_000, "bundle": "0a0b0c0d",
    "labels": [{"name": "sky", "score": 0.5}, {"name": "road", "score": 0.98}, {"name": "car", "score": 0.49}],
}  # fmt: skip


async def test_labels_are_told_the_surest_first_and_only_what_is_likely(watch: Watch) -> None:
    await take(watch, "cam-1/labels", LABELS)
    assert (await take(watch, "cam-1/stats", STATS) or "").endswith("  in the picture: road 98%, sky 50%")
    console = terminal()
    console.print(table(watch, now_ms=1_012_300, size=console.size))
    assert all(words in written(console) for words in ("in the picture", "road, sky", "12.3s"))


async def test_where_there_is_no_mask_labels_fit_into_80_columns(watch: Watch) -> None:
    names = ["sky", "building", "pavement", "pedestrian", "bicyclist"]
    labels = {**LABELS, "labels": [{"name": name, "score": 0.9} for name in names]}
    await take(watch, "cam-1/state", {"state": "offline"})
    await take(watch, "cam-1/stats", {**STATS, "share": {"sky": 0.0}})
    await take(watch, "cam-1/labels", labels)
    console = Console(file=io.StringIO(), width=80)
    console.print(table(watch, now_ms=1_099_900, size=console.size))
    words = ("cam-1", "offline", "25.0", "34.2", "21/40 ms", "3", "99.9s", *names)
    assert all(word in written(console) for word in words)


async def test_share_of_keys_is_told_where_there_is_room(watch: Watch) -> None:
    assert "  34.2 kbit/s  keys 4%  p50 " in (await take(watch, "cam-1/stats", {**STATS, "key_share": 0.042}) or "")
    await take(watch, "cam-2/stats", STATS)
    for width, told in ((80, False), (96, True)):
        console = Console(file=io.StringIO(), width=width)
        console.print(table(watch, now_ms=1_012_300, size=console.size))
        assert ("keys" in written(console), " 4% " in written(console)) == (told, told)
        assert all(word in written(console) for word in ("cam-1", "34.2", "75% road"))


async def test_without_keys_known_there_is_no_column_of_them(watch: Watch) -> None:
    await take(watch, "cam-1/stats", STATS)
    console = terminal()
    console.print(table(watch, now_ms=0, size=console.size))
    assert "keys" not in written(console)


async def test_empty_table_says_that_it_waits(watch: Watch) -> None:
    console = terminal()
    console.print(table(watch, now_ms=0, size=console.size))
    assert "waiting" in written(console)


async def test_a_camera_that_says_nothing_is_told_of_where_there_is_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nodes.watch._SILENT_S", 0.1)
    async with MemoryChannel(MemoryBroker()) as channel, Lane("watch") as lane:
        watch = Watch(lane=lane, camera="hall")
        with capture_logs() as lines:
            watching = asyncio.create_task(follow(channel, watch, count=None, console=pipe()))
            await asyncio.sleep(0.3)
            watching.cancel()
            await asyncio.wait({watching}, timeout=5)
    assert [line["event"] for line in lines] == ["nothing has been heard of hall yet; waiting"]


async def test_a_reader_that_has_enough_ends_the_watch(mqtt_url: str) -> None:
    command = shlex.join([sys.executable, "-m", "pipeline.cli", "watch"])
    environment = {**os.environ, "MASKCAST_MQTT_URL": mqtt_url, "MASKCAST_MQTT__ROOT": "watch-head"}
    async with open_channel(mqtt_url, root="watch-head") as channel, asyncio.TaskGroup() as tasks:
        await channel.wait_connected(5)
        sending = tasks.create_task(publish(channel, "cam-1"))
        shell = await asyncio.create_subprocess_exec(
            "bash", "-o", "pipefail", "-c", f"{command} | head -n 1", stdout=PIPE, stderr=PIPE, env=environment
        )
        async with asyncio.timeout(30):
            out, err = await shell.communicate()
        sending.cancel()
    assert (shell.returncode, out) == (0, b"cam-1  online\n")
    assert b"Traceback" not in err
