"""Cameras over WebRTC, to masks at the broker that they never speak to; each node a process of its own.

The tests share a worker and a gateway that asks for tokens. What has to wait for long, for another try or for the time
to fall back, begins with the first of them and is looked at by the last, so the tests go on meanwhile.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clips import write_images
from processes import Node, Site, site, wait_until
from servers import free_port, mosquitto, redis_server
from test_end_to_end import Arrival, Subscriber

NOWHERE = "mqtt://127.0.0.1:1"
LIMIT_S = 60.0
TOKENS = "# camera token\nfront right\ntape wound\n"
SLOW = {"SOURCE__FPS": "10"}  # of a directory of images: these cameras only have to be there


@dataclass(slots=True)
class Lab:
    """Nodes and servers that the tests share, and how tests look at them."""

    site: Site
    subscriber: Subscriber
    tokens: Path
    images: str
    port: int  # of the gateway that asks for tokens
    other_port: int  # of one that does not, that test_a_camera_that_may_falls_back_to_the_broker starts
    health: int
    gateway: Node
    worker: Node
    other: Node = field(init=False)  # the gateway at other_port

    def camera(self, name: str, *words: str, port: int | None = None, **settings: str) -> Node:
        """Start a camera that knows a gateway only."""
        uplink = f"webrtc+http://127.0.0.1:{port or self.port}"
        settings = {"MQTT_URL": NOWHERE, **settings}
        return self.site.start("camera", "--name", name, "--uplink", uplink, *words, **settings)

    def slow_camera(self, name: str, *, port: int | None = None, **settings: str) -> Node:
        """Start a camera of few frames a second."""
        return self.camera(name, "--source", self.images, "--loop", port=port, **SLOW, **settings)

    def start_other(self) -> None:
        """Start the gateway that takes any camera."""
        self.other = self.site.start("gateway", WEBRTC__PORT=str(self.other_port))

    def masks(self, name: str) -> list[Arrival]:
        """The masks of one camera that came so far."""
        return [each for each in self.subscriber.arrivals if each.camera == name]

    def state(self, name: str) -> dict[str, object]:
        """What was said last of a camera."""
        return self.subscriber.states.get(f"maskcast/{name}/state", {})

    def tell(self, name: str, **command: object) -> None:
        """Publish a command to a camera at the broker."""
        assert self.subscriber.client is not None
        self.subscriber.client.publish(f"maskcast/{name}/control", json.dumps(command), qos=1)

    def wait_for_masks(self, name: str, count: int) -> None:
        """Wait until so many more masks of a camera have come."""
        enough = len(self.masks(name)) + count
        self.wait_until(lambda: len(self.masks(name)) >= enough)

    def wait_for_state(self, name: str, state: str) -> None:
        self.wait_until(lambda: self.state(name).get("state") == state)

    def wait_until(self, holds: object) -> None:
        """Wait for what must come, or fail with what all nodes wrote."""
        deadline = time.monotonic() + LIMIT_S
        assert callable(holds)
        while not holds():
            assert time.monotonic() < deadline, self.site.logs()
            time.sleep(0.02)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("webrtc")
    tokens, port, health = folder / "tokens", free_port(), free_port()
    tokens.write_text(TOKENS)
    settings = {"WEBRTC__PORT": str(port), "WEBRTC__TOKENS_FILE": str(tokens), "HEALTH__PORT": str(health)}
    with redis_server(folder, durable=True) as redis, mosquitto(folder) as broker:
        mqtt_url = f"mqtt://127.0.0.1:{broker.port}"
        redis_url = f"redis://127.0.0.1:{redis.port}"
        with site(folder, mqtt_url=mqtt_url, redis_url=redis_url) as running, Subscriber(mqtt_url) as subscriber:
            yield Lab(
                site=running,
                subscriber=subscriber,
                tokens=tokens,
                images=str(write_images(folder / "images")),
                port=port,
                other_port=free_port(),
                health=health,
                gateway=running.start("gateway", **settings),
                worker=running.start("worker"),
            )


@pytest.fixture(scope="module")
def refused(lab: Lab) -> tuple[Node, Node]:
    """Cameras whose token is wrong: `guessing` has none of ours, `borrowing` that of another."""
    return (
        lab.slow_camera("guessing", WEBRTC__TOKEN="guessed-secret"),
        lab.slow_camera("borrowing", WEBRTC__TOKEN="right"),
    )


@pytest.fixture(scope="module")
def falling(lab: Lab) -> Node:
    """Camera `falling`, which may use the broker; its gateway is not there yet."""
    return lab.slow_camera("falling", port=lab.other_port, WEBRTC__FALLBACK="true", MQTT_URL=lab.subscriber.url)


@pytest.fixture(scope="module")
def back(lab: Lab) -> Node:
    """Camera `back`, at the same gateway."""
    return lab.slow_camera("back", port=lab.other_port)


@pytest.fixture(scope="module")
def front_health() -> int:
    return free_port()


@pytest.fixture(scope="module")
def front(lab: Lab, front_health: int) -> Node:
    """Camera `front`, on the sample."""
    wait_until(lambda: "online" in json.dumps(lab.subscriber.states), limit_s=LIMIT_S, message=lab.site.logs())
    return lab.camera("front", "--loop", WEBRTC__TOKEN="right", HEALTH__PORT=str(front_health))


@pytest.fixture(scope="module", autouse=True)
def begun(front: Node, refused: tuple[Node, Node], falling: Node, back: Node) -> None:
    """All that waits for long has begun."""


def metric(port: int, line: str) -> float:
    """The value of a metric of the node at this port, 0 where it was never counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(each.rpartition(" ")[2]) for each in lines if each.startswith(line)), 0.0)


def refusals(lab: Lab) -> float:
    return metric(lab.health, 'maskcast_drops_total{node="webrtc",reason="token"}')


def test_masks_come_of_a_camera_that_speaks_to_the_gateway_only(lab: Lab) -> None:
    lab.wait_for_masks("front", 50)  # until then a worker may have been behind
    before = len(lab.masks("front"))
    lab.wait_for_masks("front", 50)
    seen = [each.sequence for each in lab.masks("front")[before : before + 50]]
    assert seen == sorted(set(seen)), lab.site.logs()
    assert seen[-1] - seen[0] < 75, lab.site.logs()  # a worker that cannot keep pace leaves frames out
    state = lab.state("front")
    assert (state["state"], state["transport"]) == ("online", "webrtc")
    assert str(state["path"]).startswith("host ")


def test_control_messages_reach_the_camera(lab: Lab, front: Node, front_health: int) -> None:
    lab.tell("front", pause=True)
    lab.wait_until(lambda: "paused over the control topic" in front.log.read_text())
    lab.tell("front", pause=False, key=[0])
    lab.wait_for_masks("front", 25)
    assert metric(front_health, 'maskcast_controls_total{command="pause"}') == 2


def test_a_camera_that_stops_says_so(lab: Lab, front: Node) -> None:
    assert front.stop() == 0, lab.site.logs()
    lab.wait_for_state("front", "stopped")


def test_a_camera_that_may_falls_back_to_the_broker(lab: Lab, falling: Node) -> None:
    lab.wait_for_masks("falling", 10)
    assert "falling back to the broker" in falling.log.read_text()
    assert lab.state("falling")["transport"] == "mqtt"
    lab.start_other()


def test_of_a_recording_each_frame_gets_its_mask_once(lab: Lab) -> None:
    camera = lab.camera("tape", "--fast", WEBRTC__TOKEN="wound", SOURCE__START_S="8", CAMERA__ANSWER_S="30")
    assert camera.process.wait(90) == 0, lab.site.logs()
    sequences = [each.sequence for each in lab.masks("tape")]
    assert sequences == list(range(len(sequences))), lab.site.logs()
    assert len(sequences) > 64  # twice as many as are on the way at a time
    assert f'"frames": {len(sequences)}, "resent": 0' in camera.log.read_text()


def test_it_returns_when_the_gateway_is_there(lab: Lab, falling: Node) -> None:
    lab.wait_until(lambda: "the gateway is there again" in falling.log.read_text())
    lab.wait_for_masks("falling", 10)
    assert (lab.state("falling")["state"], lab.state("falling")["transport"]) == ("online", "webrtc")
    falling.kill()


def test_a_wrong_token_is_refused_in_one_sentence_and_counted_and_the_right_one_is_taken(
    lab: Lab, refused: tuple[Node, Node]
) -> None:
    assert refusals(lab) >= 2
    lab.wait_until(lambda: refusals(lab) >= 4)  # they try again
    for camera in refused:
        (line,) = [line for line in camera.log.read_text().splitlines() if '"level": "error"' in line]
        assert "refuses our token" in line
        assert "(401 " in line
    assert not lab.masks("guessing")
    assert not lab.masks("borrowing")

    refused[1].stop()
    lab.tokens.write_text(TOKENS + "borrowing own\n")
    lab.wait_until(lambda: '"cameras": 3' in lab.gateway.log.read_text())
    taken = lab.slow_camera("borrowing", WEBRTC__TOKEN="own")
    lab.wait_for_masks("borrowing", 10)
    assert "guessed-secret" not in lab.site.logs()
    taken.kill()  # test_a_camera_that_died_...: the gateway notices after seconds of silence


def test_masks_come_again_when_the_gateway_was_killed_and_when_it_stops_its_cameras_are_offline(
    lab: Lab, back: Node
) -> None:
    lab.wait_for_masks("back", 10)
    lab.other.kill()
    lab.wait_until(lambda: "frames are not sent" in back.log.read_text())
    lab.start_other()
    lab.wait_for_masks("back", 25)
    assert back.process.poll() is None
    assert lab.worker.process.poll() is None
    assert "frames are sent again" in back.log.read_text()
    assert lab.state("back")["state"] == "online"
    assert lab.other.stop() == 0, lab.site.logs()
    lab.wait_for_state("back", "offline")
    back.kill()


def test_a_camera_that_died_is_said_to_be_offline_until_it_is_there_again(lab: Lab) -> None:
    lab.wait_for_state("borrowing", "offline")
    lab.slow_camera("borrowing", WEBRTC__TOKEN="own")
    lab.wait_for_state("borrowing", "online")


def test_all_nodes_stop_in_order_and_have_said_nothing_of_errors(lab: Lab) -> None:
    assert [node.stop() for node in (lab.worker, lab.gateway)] == [0, 0], lab.site.logs()
    assert "Traceback" not in lab.site.logs()
    assert "never retrieved" not in lab.site.logs()
