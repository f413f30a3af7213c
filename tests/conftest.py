"""Fixtures that more than one test file needs."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import redis.asyncio
import structlog
from queues import RedisBench
from servers import Server, mosquitto, redis_server

if TYPE_CHECKING:
    from pipeline.bundle import Bundle
    from pipeline.models.split_segmenter import SplitSegmenter


@pytest.fixture(autouse=True)
def fresh_logging() -> Iterator[None]:
    """A node that ran in a test has set up logging to a stream that is gone afterwards."""
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="session")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a redis-server that lives as long as the tests; others' keys may be in it."""
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield f"redis://127.0.0.1:{server.port}"


@pytest.fixture(scope="session")
def mqtt_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a mosquitto that lives as long as the tests; others' retained messages may be in it."""
    with mosquitto(tmp_path_factory.mktemp("mosquitto")) as server:
        yield f"mqtt://127.0.0.1:{server.port}"


@pytest.fixture
async def redis_bench(redis_url: str) -> RedisBench:
    """An empty queue on Redis; the rest of that server is not touched."""
    url = f"{redis_url}/9"
    async with redis.asyncio.from_url(url) as client:
        await client.flushdb()
    return RedisBench(url)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[Server]:
    """A durable redis-server for one test, which may kill it and start it again."""
    with redis_server(tmp_path, durable=True) as server:
        yield server


@pytest.fixture
def own_mosquitto(tmp_path: Path) -> Iterator[Server]:
    """A mosquitto for one test, which may kill it and start it again."""
    with mosquitto(tmp_path) as server:
        yield server


@pytest.fixture
def screenshots(tmp_path: Path) -> Path:
    """The folder for screenshots: SCREENSHOTS, to look at them, or one that goes away."""
    folder = Path(os.environ.get("SCREENSHOTS", tmp_path))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


# What follows imports torch, which most test files can do without: only where it is asked for.


@pytest.fixture(scope="session")
def tiny_network() -> "SplitSegmenter":
    """A small network of three levels in eval mode, its prior fitted; shared: copy it before changing it."""
    import tiny

    return tiny.network()


@pytest.fixture(scope="session")
def tiny_bundle(tiny_network: "SplitSegmenter", tmp_path_factory: pytest.TempPathFactory) -> "Bundle":
    """The bundle of tiny_network: 96 x 64 pixels, 11 classes, 3 levels; shared: copy the folder before changing it."""
    import tiny

    return tiny.bundle(tiny_network, tmp_path_factory.mktemp("tiny_bundle"))


@pytest.fixture(scope="session")
def tiny_camvid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in CamVid's layout: a dozen frames of 96 x 64 pixels, of two drives."""
    import tiny

    return tiny.camvid(tmp_path_factory.mktemp("tiny_camvid") / "data")


@pytest.fixture(scope="session")
def tiny_run(tiny_camvid: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished training run of two epochs on tiny_camvid."""
    import tiny

    from pipeline.training import train

    folders = tiny.folders(tiny_camvid, tmp_path_factory.mktemp("tiny_run"))
    assert len(list(train(tiny.experiment(), folders))) == 2
    return folders.run
