"""What is deployed: the broker's logins and access rules as the nodes need them, and ports that stay closed."""

import asyncio
import configparser
import os
import re
import subprocess
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from channels import LIMIT_S, quiet, take, until
from clips import write_clip
from servers import Server, accepts, find_program, free_port

from nodes import camera, gateway, worker
from nodes.service import STOP_TIMEOUT_S
from nodes.tokens import read_tokens
from pipeline import metrics
from pipeline.bundle import default_bundle, load_bundle
from pipeline.config import CameraSettings, GatewaySettings, WorkerSettings, load_settings, variables
from pipeline.transport import CONTROL, STATE, open_channel

ROOT = Path(__file__).parent.parent
BROKER = ROOT / "configs" / "deploy" / "mosquitto"
LOGINS = ("gateway", "worker", "viewer", "operator", "street", "garden")
Address = Callable[[str], str]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Address]:
    """The address of a broker with the deployed rules, for a login."""
    port, passwords = free_port(), tmp_path / "passwd"
    passwords.touch()
    for login in LOGINS:
        program = find_program("mosquitto_passwd", "mosquitto")
        subprocess.run([program, "-b", str(passwords), login, "secret"], check=True, capture_output=True)
    settings = (BROKER / "password.conf").read_text()
    settings = settings.replace("listener 1883", f"listener {port} 127.0.0.1")
    settings = settings.replace("/mosquitto/config/passwd", str(passwords))
    settings = settings.replace("/mosquitto/config/acl", str(BROKER / "acl"))
    if os.geteuid() == 0:
        settings += "user root\n"
    (tmp_path / "broker.conf").write_text(settings)
    command = [find_program("mosquitto", "mosquitto"), "-c", str(tmp_path / "broker.conf")]
    with Server(command, port, tmp_path / "broker.log", accepts):
        yield lambda login: f"mqtt://{login}:secret@127.0.0.1:{port}"


@asynccontextmanager
async def running(*nodes: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(node) for node in nodes]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
            await asyncio.wait({task}, timeout=LIMIT_S)


async def test_the_page_gets_all_it_shows_over_a_broker_with_logins(
    address: Address, redis_url: str, tmp_path: Path
) -> None:
    plain = {"health.port": 0}
    served = {**plain, "redis_url": redis_url}
    source = {"source.url": str(write_clip(tmp_path / "clip.mp4")), "source.loop": True, "camera.name": "street"}
    shown = {"preview.enabled": True, "mqtt_url": address("street"), "encoder.engine": "onnxruntime"}
    working = {"mqtt_url": address("worker"), "decoder.engine": "onnxruntime", "worker.stats_s": 0.2, "worker.id": "w"}
    wanted = {"street/state", "street/mask", "street/stats", "street/preview", "worker/w/state"}
    wanted.add(f"bundle/{load_bundle(default_bundle()).manifest.hash}")
    async with (
        open_channel(address("viewer")) as page,
        running(
            gateway.main(load_settings(GatewaySettings, None, {**served, "mqtt_url": address("gateway")})),
            worker.main(load_settings(WorkerSettings, None, {**served, **working})),
            camera.main(load_settings(CameraSettings, None, {**plain, **source, **shown})),
        ),
    ):
        messages = page.subscribe("+/state", "+/mask", "+/stats", "+/preview", "bundle/+", "worker/+/state")
        async with asyncio.timeout(30):
            while wanted:
                wanted.discard((await anext(messages)).topic)


async def test_a_camera_speaks_for_itself_only_and_not_for_the_bundle(address: Address) -> None:
    async with open_channel(address("street")) as street, open_channel(address("gateway")) as reader:
        arriving = reader.subscribe("+/latent", "+/state")
        for channel in (street, reader):
            await channel.wait_connected(LIMIT_S)
        async with open_channel(address("viewer")) as page:
            legends = page.subscribe("bundle/+", "+/mask")
            await page.wait_connected(LIMIT_S)
            for topic in ("garden/latent", "garden/state", "bundle/ab", "garden/mask", "street/mask", "street/latent"):
                await street.publish(topic, b"x", STATE if "latent" not in topic else CONTROL)
            assert [message.topic for message in await take(arriving)] == ["street/latent"]
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.2):
                    await anext(legends)


async def test_a_camera_hears_its_own_commands_only(address: Address) -> None:
    async with open_channel(address("street")) as street, open_channel(address("gateway")) as sender:
        commands = street.subscribe("+/control")
        for channel in (street, sender):
            await channel.wait_connected(LIMIT_S)
        await asyncio.sleep(0.2)
        await sender.publish("garden/control", b"x", CONTROL)
        await sender.publish("street/control", b"y", CONTROL)
        assert [message.topic for message in await take(commands)] == ["street/control"]


async def test_a_worker_hears_what_other_workers_say_of_a_camera(address: Address) -> None:
    async with open_channel(address("worker")) as one, open_channel(address("worker")) as other:
        stats = one.subscribe("+/stats")
        for channel in (one, other):
            await channel.wait_connected(LIMIT_S)
        await asyncio.sleep(0.2)
        await other.publish("street/stats", b"{}")
        assert [message.topic for message in await take(stats)] == ["street/stats"]


async def test_over_webrtc_the_gateways_login_is_enough_for_what_the_page_shows_and_for_commands(
    address: Address, redis_url: str, tmp_path: Path
) -> None:
    port, tokens = free_port(), tmp_path / "tokens"
    tokens.write_text("street secret\n")
    plain = {"health.port": 0}
    taking = {**plain, "redis_url": redis_url, "webrtc.port": port, "webrtc.tokens_file": str(tokens)}
    source = {"source.url": str(write_clip(tmp_path / "clip.mp4")), "source.loop": True, "camera.name": "street"}
    sending = {"uplink": f"webrtc+http://secret@127.0.0.1:{port}", "mqtt_url": "mqtt://127.0.0.1:1"}
    shown = {"preview.enabled": True, "encoder.engine": "onnxruntime"}
    working = {**plain, "redis_url": redis_url, "mqtt_url": address("worker"), "decoder.engine": "onnxruntime"}
    wanted = {"street/state", "street/mask", "street/stats", "street/preview"}
    async with (
        open_channel(address("viewer")) as page,
        open_channel(address("worker")) as commander,
        running(
            gateway.main(load_settings(GatewaySettings, None, {**taking, "mqtt_url": address("gateway")})),
            worker.main(load_settings(WorkerSettings, None, working)),
            camera.main(load_settings(CameraSettings, None, {**plain, **source, **sending, **shown})),
        ),
    ):
        messages = page.subscribe("+/state", "+/mask", "+/stats", "+/preview")
        async with asyncio.timeout(30):
            while wanted:
                wanted.discard((await anext(messages)).topic)
        paused = metrics.CONTROLS.labels("pause")._value
        before = paused.get()
        await commander.publish("street/control", b'{"pause": true}', CONTROL)
        await until(lambda: paused.get() == before + 1)


async def test_a_camera_hears_its_own_receipts_only(address: Address) -> None:
    async with open_channel(address("street")) as street, open_channel(address("gateway")) as sender:
        receipts = street.subscribe("+/receipt")
        for channel in (street, sender):
            await channel.wait_connected(LIMIT_S)
        await asyncio.sleep(0.2)
        await sender.publish("garden/receipt", b"x", CONTROL)
        await sender.publish("street/receipt", b"y", CONTROL)
        assert [message.topic for message in await take(receipts)] == ["street/receipt"]


async def test_the_operator_gives_commands_and_forgets_a_camera_and_the_page_can_do_neither(address: Address) -> None:
    async with open_channel(address("street")) as street, open_channel(address("viewer")) as page:
        commands, states = street.subscribe("+/control"), page.subscribe("+/state")
        async with open_channel(address("operator")) as operator, open_channel(address("gateway")) as reader:
            packets, seen = reader.subscribe("+/latent"), operator.subscribe("+/state")
            for channel in (street, page, operator, reader):
                await channel.wait_connected(LIMIT_S)
            await asyncio.sleep(0.2)
            await street.publish("street/state", b"here", STATE)
            assert [message.payload for message in await take(seen)] == [b"here"]
            for login, channel in ((b"viewer", page), (b"operator", operator)):
                await channel.publish("street/latent", b"x", CONTROL)
                await channel.publish("street/control", login, CONTROL)
                await channel.publish("street/state", b"", STATE)
            assert [message.payload for message in await take(commands)] == [b"operator"]
            assert [message.payload for message in await take(states, 2)] == [b"here", b""]
            assert await quiet(packets) and await quiet(commands) and await quiet(states)
    async with open_channel(address("viewer")) as later:
        states = later.subscribe("+/state")
        await later.wait_connected(LIMIT_S)
        assert await quiet(states)


def test_the_operator_reads_what_the_page_reads_and_is_in_the_instructions() -> None:
    users = re.split(r"^user ", (BROKER / "acl").read_text(), flags=re.MULTILINE)[1:]
    rule = re.compile(r"^topic (\w+) (maskcast/\S+)$", re.MULTILINE)
    rules = {text.split("\n")[0]: set(rule.findall(text)) for text in users}
    states = ("maskcast/+/state", "maskcast/gateway/+/state", "maskcast/worker/+/state")
    writes = {("write", "maskcast/+/control"), *(("write", topic) for topic in states)}
    assert rules["operator"] == rules["viewer"] | writes
    assert "mosquitto_passwd passwd operator\n" in (BROKER / "password.conf").read_text()


def test_one_setting_of_the_camera_is_all_it_takes_to_come_over_webrtc() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    services = yaml.safe_load(text)["services"]
    gateway, camera = services["gateway"]["environment"], services["camera"]["environment"]
    (port,) = re.findall(r"CAMERA_UPLINK=webrtc\+http://gateway:(\d+) ", text)
    assert (gateway["MASKCAST_WEBRTC__PORT"], gateway["MASKCAST_WEBRTC__HOST"]) == (port, "0.0.0.0")
    assert camera["MASKCAST_UPLINK"] == "${CAMERA_UPLINK:-}"
    assert "ports" not in services["gateway"]
    check = (ROOT / "scripts" / "compose_check").read_text()
    assert f"export CAMERA_UPLINK=webrtc+http://gateway:{port}\n" in check


def test_the_turn_server_is_asked_for_pinned_and_lets_nobody_in_without_a_login() -> None:
    coturn = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["coturn"]
    assert coturn["profiles"] == ["turn"]
    # The image's program has this capability as a file, and is not started where it may not have it.
    assert coturn["cap_add"] == ["NET_BIND_SERVICE"]
    assert re.fullmatch(r"coturn/coturn:\d+\.\d+\.\d+", coturn["image"])
    assert {"--lt-cred-mech", "--user=${TURN_LOGIN:-}", "--no-tcp-relay", "--no-cli"} <= set(coturn["command"])


def test_the_turn_server_relays_to_no_private_address_but_the_gateways() -> None:
    command = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["coturn"]["command"]
    values = [text.partition("=")[2] for text in command if text.startswith("--denied-peer-ip=")]
    ranges = [[ip_address(end) for end in value.split("-")] for value in values]

    def is_denied(address: IPv4Address | IPv6Address) -> bool:
        return any(
            int(each[0]) <= int(address) <= int(each[-1]) for each in ranges if each[0].version == address.version
        )

    private = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16"]
    for network in map(ip_network, [*private, "0.0.0.0/8", "fc00::/7", "fe80::/10", "::1/128", "::ffff:0:0/96"]):
        assert is_denied(network[0]) and is_denied(network[-1])
    assert not any(is_denied(ip_address(text)) for text in ("192.0.2.1", "9.255.255.255", "172.32.0.0", "2001:db8::1"))
    # One from `::` on is for coturn one of IPv4 as well, up to its end.
    assert ip_address("::") not in [each[0] for each in ranges]
    # An address must stand there at all times, and this is nobody's.
    allowed = [text for text in command if text.startswith("--allowed-peer-ip=")]
    assert allowed == ["--allowed-peer-ip=${TURN_PEER:-192.0.2.1}"]


def test_the_gateway_in_the_machines_network_reaches_what_is_published_there_on_loopback() -> None:
    services = yaml.safe_load((ROOT / "configs" / "deploy" / "host-network.yml").read_text())["services"]
    environment = services["gateway"]["environment"]
    assert services["gateway"]["network_mode"] == "host"
    assert services["redis"]["ports"] == ["127.0.0.1:6379:6379"]
    assert environment["MASKCAST_REDIS_URL"] == "redis://127.0.0.1:6379"
    assert f":{environment['MASKCAST_HEALTH__PORT']}/" in services["gateway"]["healthcheck"]["test"][-1]
    known = {*variables(GatewaySettings)}
    assert set(environment) <= known


def test_a_broker_one_has_already_is_told_to_all_that_use_one() -> None:
    deploy = ROOT / "configs" / "deploy"
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    services |= yaml.safe_load((deploy / "second-camera.yml").read_text())["services"]
    urls = {name: each.get("environment", {}).get("MASKCAST_MQTT_URL") for name, each in services.items()}
    nodes = ("gateway", "worker", "viewer", "camera", "camera2")
    expected = {name: f"mqtt://${{{name.upper()}_LOGIN:-}}${{MQTT_BROKER:-mosquitto:1883}}" for name in nodes}
    assert {name: url for name, url in urls.items() if url} == expected
    # In the machine's network that of compose is where docker publishes it, and another is where it is for all.
    files = (deploy / "host-network.yml", deploy / "host-network-broker.yml")
    shared, own = (yaml.safe_load(file.read_text())["services"]["gateway"]["environment"] for file in files)
    assert shared["MASKCAST_MQTT_URL"] == "mqtt://${GATEWAY_LOGIN:-}127.0.0.1:${MQTT_PORT:-1883}"
    assert re.fullmatch(r"mqtt://\$\{GATEWAY_LOGIN:-\}\$\{MQTT_BROKER:\?[^}]+\}", own.pop("MASKCAST_MQTT_URL"))
    assert not own


def test_a_second_camera_is_the_first_with_name_source_zones_and_logins_of_its_own() -> None:
    text = (ROOT / "configs" / "deploy" / "second-camera.yml").read_text()
    services = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    first, second = services["camera"], yaml.safe_load(text)["services"]["camera2"]
    assert second["extends"] == {"file": "docker-compose.yml", "service": "camera"}
    assert not {"depends_on", "links", "volumes_from"} & set(first)  # compose 1 extends no service that has one
    own = {name: text for name, text in second["environment"].items() if name != "MASKCAST_MQTT_URL"}
    names = {"CAMERA__NAME", "CAMERA__ZONES", "SOURCE__URL", "WEBRTC__TOKEN"}
    assert set(own) == {f"MASKCAST_{name}" for name in names}
    assert {name: text.replace("CAMERA2_", "CAMERA_") for name, text in own.items()} == {
        **{name: first["environment"][name] for name in own},
        "MASKCAST_CAMERA__NAME": "${CAMERA_NAME:-garden}",
    }
    assert first["environment"]["MASKCAST_CAMERA__NAME"] != "${CAMERA_NAME:-garden}"
    # Prometheus finds it under the first one's name.
    assert second["networks"]["default"]["aliases"] == ["camera"]
    jobs = yaml.safe_load((ROOT / "configs" / "deploy" / "prometheus.yml").read_text())["scrape_configs"]
    (job,) = (job for job in jobs if job["job_name"] == "camera")
    assert [search["names"] for search in job["dns_sd_configs"]] == [["camera"]]


def test_a_third_camera_is_a_copy_as_the_second_one_says() -> None:
    file = ROOT / "configs" / "deploy" / "second-camera.yml"
    text = file.read_text()
    (script,) = re.findall(r"configs/deploy; sed '(.*)' second-camera.yml > third-camera.yml\n", text)
    copy = subprocess.run(["sed", script, str(file)], check=True, capture_output=True, text=True).stdout
    second, third = yaml.safe_load(text)["services"], yaml.safe_load(copy)["services"]
    assert (set(second), set(third)) == ({"camera2"}, {"camera3"})
    assert third["camera3"]["extends"] == second["camera2"]["extends"]
    values = list(third["camera3"]["environment"].values())
    assert all("${CAMERA3_" in value for value in values)
    assert not set(values) & set(second["camera2"]["environment"].values())
    assert third["camera3"]["environment"]["MASKCAST_CAMERA__NAME"] == "${CAMERA3_NAME:-gate}"


def test_the_example_of_tokens_lets_nobody_in() -> None:
    folder = ROOT / "configs" / "deploy" / "webrtc"
    assert read_tokens(folder / "tokens.example") == {}
    assert "configs/deploy/webrtc/tokens\n" in (ROOT / ".gitignore").read_text()


def test_the_instructions_name_one_camera_that_gets_a_login() -> None:
    text = (BROKER / "password.conf").read_text()
    (login,) = re.findall(r"CAMERA_LOGIN=([a-z0-9-]+):", text)
    assert f"mosquitto_passwd passwd {login}\n" in text
    assert f"${{CAMERA_NAME:-{login}}}" in (ROOT / "docker-compose.yml").read_text()


def test_opening_the_broker_to_the_network_opens_nothing_else() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    ports = re.findall(r'ports: \["\$\{(\w+):-([\d.]+)\}:.*:(\d+)"\]', text)
    assert {port: (name, address) for name, address, port in ports} == {
        "1883": ("MQTT_BIND_ADDRESS", "127.0.0.1"),
        "8080": ("BIND_ADDRESS", "127.0.0.1"),
        "9090": ("BIND_ADDRESS", "127.0.0.1"),
        "3000": ("BIND_ADDRESS", "127.0.0.1"),
    }
    assert text.count("ports:") == len(ports)
    assert "MQTT_BIND_ADDRESS=0.0.0.0" in (BROKER / "password.conf").read_text()


def test_all_that_compose_can_be_told_is_in_the_example_with_what_holds_without_it() -> None:
    deploy = ROOT / "configs" / "deploy"
    others = ("host-network.yml", "host-network-broker.yml", "device.yml", "second-camera.yml")
    files = [ROOT / "docker-compose.yml", *(deploy / name for name in others)]
    found = set(re.findall(r"\$\{(\w+):-([^}]*)\}", "\n".join(file.read_text() for file in files)))
    asked = dict(found)
    assert len(asked) == len(found)  # none has two defaults
    told = dict(re.findall(r"^#(\w+)=(.*)$", (ROOT / ".env.example").read_text(), flags=re.MULTILINE))
    assert told == asked
    assert not re.findall(r"^[^#\n]", (ROOT / ".env.example").read_text(), flags=re.MULTILINE)


def test_a_device_is_what_the_camera_is_given_and_plays() -> None:
    camera = yaml.safe_load((ROOT / "configs" / "deploy" / "device.yml").read_text())["services"]["camera"]
    (device,) = camera["devices"]
    assert device.endswith(f":{camera['environment']['MASKCAST_SOURCE__URL']}")
    assert set(camera["environment"]) <= {*variables(CameraSettings)}


def test_the_systemd_unit_runs_a_camera_as_nobody_and_tries_again_without_end() -> None:
    text = (ROOT / "configs" / "deploy" / "systemd" / "maskcast-camera@.service").read_text()
    unit = configparser.RawConfigParser(strict=False, delimiters="=")
    unit.optionxform = str  # type: ignore[assignment, method-assign]
    unit.read_string(text)
    service = unit["Service"]
    assert service["ExecStart"] == "/opt/maskcast/bin/maskcast camera --name %i"
    assert (service["Restart"], service["RestartSec"]) == ("on-failure", "10")
    assert unit["Unit"]["StartLimitIntervalSec"] == "0"
    assert not {name for name in service if name.startswith(("RestartPrevent", "StartLimit"))}
    # Further cameras move off the port that one has unless it is told.
    assert f"\n# {CameraSettings().health.port}: MASKCAST_HEALTH__PORT=" in text
    # A shell changes no $ of a password on its way into the file.
    assert "<<'END'\n" in text
    assert (service["DynamicUser"], service["NoNewPrivileges"]) == ("yes", "yes")
    assert float(service["TimeoutStopSec"]) > STOP_TIMEOUT_S
    assert set(re.findall(r"MASKCAST_\w+", text)) <= {*variables(CameraSettings)}
