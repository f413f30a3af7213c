"""Cameras over WebRTC, to masks at the broker that they never speak to; each node a process of its own."""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Node, Site, site, wait_until
from servers import Server, free_port
from test_end_to_end import Subscriber

NOWHERE = "mqtt://127.0.0.1:1"
LIMIT_S = 60.0


@pytest.fixture
def here(tmp_path: Path, own_redis: Server, own_mosquitto: Server) -> Iterator[Site]:
    mqtt_url, redis_url = f"mqtt://127.0.0.1:{own_mosquitto.port}", f"redis://127.0.0.1:{own_redis.port}"
    with site(tmp_path, mqtt_url=mqtt_url, redis_url=redis_url) as running:
        yield running


@pytest.fixture
def subscriber(own_mosquitto: Server) -> Iterator[Subscriber]:
    with Subscriber(f"mqtt://127.0.0.1:{own_mosquitto.port}") as listening:
        yield listening


def start_camera(here: Site, port: int, *words: str, name: str = "cam-1", **settings: str) -> Node:
    """A camera that knows the gateway only."""
    uplink = f"webrtc+http://127.0.0.1:{port}"
    return here.start("camera", "--name", name, "--uplink", uplink, *words, **{"MQTT_URL": NOWHERE, **settings})


def state_of(subscriber: Subscriber, name: str = "cam-1") -> dict[str, object]:
    return subscriber.states.get(f"maskcast/{name}/state", {})


def wait_for_state(subscriber: Subscriber, state: str, here: Site) -> None:
    wait_until(lambda: state_of(subscriber).get("state") == state, limit_s=LIMIT_S, message=here.logs())


def metric(port: int, line: str) -> float:
    """The value of a metric of the node at this port, 0 where it was never counted."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next((float(each.rpartition(" ")[2]) for each in lines if each.startswith(line)), 0.0)


def test_masks_come_of_a_camera_that_speaks_to_the_gateway_only(here: Site, subscriber: Subscriber) -> None:
    port = free_port()
    nodes = [here.start("gateway", WEBRTC__PORT=str(port)), here.start("worker")]
    wait_until(lambda: "online" in json.dumps(subscriber.states), limit_s=LIMIT_S, message=here.logs())
    nodes.append(start_camera(here, port, "--loop"))
    subscriber.wait_for(100, limit_s=LIMIT_S, here=here)
    seen = [each.sequence for each in subscriber.arrivals[50:100]]  # until then a worker may have been behind
    assert seen == list(range(seen[0], seen[0] + 50)), here.logs()
    state = state_of(subscriber)
    assert (state["state"], state["transport"]) == ("online", "webrtc")
    assert str(state["path"]).startswith("host ")
    assert nodes[2].stop() == 0, here.logs()
    wait_for_state(subscriber, "stopped", here)
    assert [node.stop() for node in nodes] == [0, 0, 0], here.logs()
    assert "Traceback" not in here.logs()


def test_a_camera_that_dies_is_said_to_be_offline_and_so_is_one_whose_gateway_stops(
    here: Site, subscriber: Subscriber
) -> None:
    port = free_port()
    gateway, camera = here.start("gateway", WEBRTC__PORT=str(port)), start_camera(here, port, "--loop")
    wait_for_state(subscriber, "online", here)
    camera.kill()
    wait_for_state(subscriber, "offline", here)
    start_camera(here, port, "--loop")
    wait_for_state(subscriber, "online", here)
    assert gateway.stop() == 0, here.logs()
    wait_for_state(subscriber, "offline", here)


def test_masks_come_again_when_the_gateway_was_killed(here: Site, subscriber: Subscriber) -> None:
    port = free_port()
    gateway, worker = here.start("gateway", WEBRTC__PORT=str(port)), here.start("worker")
    camera = start_camera(here, port, "--loop")
    subscriber.wait_for(25, limit_s=LIMIT_S, here=here)
    gateway.kill()
    time.sleep(1.0)  # the camera goes on meanwhile
    before = len(subscriber.arrivals)
    here.start("gateway", WEBRTC__PORT=str(port))
    subscriber.wait_for(before + 50, limit_s=LIMIT_S, here=here)
    assert camera.process.poll() is None
    assert worker.process.poll() is None
    assert "frames are sent again" in camera.log.read_text()


def test_control_messages_reach_the_camera(here: Site, subscriber: Subscriber) -> None:
    port, health = free_port(), free_port()
    here.start("gateway", WEBRTC__PORT=str(port))
    here.start("worker")
    camera = start_camera(here, port, "--loop", HEALTH__PORT=str(health))
    subscriber.wait_for(10, limit_s=LIMIT_S, here=here)
    assert subscriber.client is not None
    subscriber.client.publish("maskcast/cam-1/control", json.dumps({"pause": True}), qos=1)
    wait_until(lambda: "paused over the control topic" in camera.log.read_text(), limit_s=20, message=here.logs())
    subscriber.client.publish("maskcast/cam-1/control", json.dumps({"pause": False, "key": [0]}), qos=1)
    before = len(subscriber.arrivals)
    subscriber.wait_for(before + 25, limit_s=20, here=here)
    assert metric(health, 'maskcast_controls_total{command="pause"}') == 2


def test_a_wrong_token_is_refused_in_one_sentence_and_counted_and_the_right_one_is_taken(
    here: Site, subscriber: Subscriber, tmp_path: Path
) -> None:
    port, health, tokens = free_port(), free_port(), tmp_path / "tokens"
    tokens.write_text("# camera token\ncam-1 right\n")
    gateway = here.start("gateway", WEBRTC__PORT=str(port), WEBRTC__TOKENS_FILE=str(tokens), HEALTH__PORT=str(health))
    here.start("worker")
    refused = [
        start_camera(here, port, "--loop", WEBRTC__TOKEN="guessed-secret"),
        start_camera(here, port, "--loop", name="cam-2", WEBRTC__TOKEN="right"),
    ]
    wait_until(
        lambda: all("(401 " in camera.log.read_text() for camera in refused), limit_s=30, message="nobody was refused"
    )
    counted = 'maskcast_drops_total{node="webrtc",reason="token"}'
    wait_until(lambda: metric(health, counted) >= 2, limit_s=10, message=here.logs())
    wait_until(lambda: metric(health, counted) >= 3, limit_s=30, message=here.logs())  # they try again
    assert not subscriber.arrivals
    for camera in refused:
        (line,) = [line for line in camera.log.read_text().splitlines() if '"level": "error"' in line]
        assert "refuses our token" in line
    assert "guessed-secret" not in here.logs()

    for camera in refused:
        camera.stop()
    start_camera(here, port, "--loop", WEBRTC__TOKEN="right")
    subscriber.wait_for(10, limit_s=LIMIT_S, here=here)
    tokens.write_text("cam-1 right\ncam-2 added\n")
    wait_until(lambda: '"cameras": 2' in gateway.log.read_text(), limit_s=10, message=here.logs())
    start_camera(here, port, "--loop", name="cam-2", WEBRTC__TOKEN="added")
    wait_until(
        lambda: {each.camera for each in subscriber.arrivals} == {"cam-1", "cam-2"},
        limit_s=LIMIT_S,
        message=here.logs(),
    )


def test_of_a_recording_each_frame_gets_its_mask_once(here: Site, subscriber: Subscriber) -> None:
    port = free_port()
    here.start("gateway", WEBRTC__PORT=str(port))
    here.start("worker")
    wait_until(lambda: "online" in json.dumps(subscriber.states), limit_s=LIMIT_S, message=here.logs())
    camera = start_camera(here, port, "--fast", CAMERA__ANSWER_S="30")
    assert camera.process.wait(90) == 0, here.logs()
    sequences = [each.sequence for each in subscriber.arrivals]
    assert sequences == list(range(len(sequences))), here.logs()
    assert f'"frames": {len(sequences)}, "resent": 0' in camera.log.read_text()


def test_a_camera_that_may_falls_back_to_the_broker_and_returns(here: Site, subscriber: Subscriber) -> None:
    port, broker = free_port(), subscriber.url
    gateway = here.start("gateway")
    here.start("worker")
    camera = start_camera(here, port, "--loop", WEBRTC__FALLBACK="true", MQTT_URL=broker)
    subscriber.wait_for(10, limit_s=LIMIT_S, here=here)
    assert "falling back to the broker" in camera.log.read_text()
    assert state_of(subscriber)["transport"] == "mqtt"
    gateway.stop()
    here.start("gateway", WEBRTC__PORT=str(port))
    wait_until(lambda: "the gateway is there again" in camera.log.read_text(), limit_s=LIMIT_S, message=here.logs())
    before = len(subscriber.arrivals)
    subscriber.wait_for(before + 25, limit_s=30, here=here)
    assert (state_of(subscriber)["state"], state_of(subscriber)["transport"]) == ("online", "webrtc")
