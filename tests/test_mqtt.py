"""The channel over MQTT: addresses, reconnecting, logins, versions, what a broken link does."""

import asyncio
import contextlib
import gc
import socket
import subprocess
from pathlib import Path

import aiomqtt
import pytest
import structlog
from channels import LIMIT_S, ready, take, until
from servers import Server, find_program, free_port, mosquitto

from pipeline.errors import ConfigError, TransportError
from pipeline.transport import STATE, Delivery, Message, mqtt_client, open_channel
from pipeline.transport.mqtt import MqttChannel
from pipeline.transport.mqtt_address import parse_mqtt_url
from pipeline.transport.reconnecting import Retry


def test_mqtt_address_is_read_with_percent_encoded_login() -> None:
    address = parse_mqtt_url("mqtts://cam%40home:p%2Fa%3As@broker.example:9000?version=3.1.1&ca=/etc/ca.pem")
    assert (address.host, address.port, address.tls) == ("broker.example", 9000, True)
    assert (address.user, address.password) == ("cam@home", "p/a:s")
    assert (address.version, address.ca) == ("3.1.1", Path("/etc/ca.pem"))


def test_mqtt_ports_have_defaults() -> None:
    assert parse_mqtt_url("mqtt://broker").port == 1883
    assert parse_mqtt_url("mqtts://broker").port == 8883
    assert parse_mqtt_url("mqtt://[::1]").host == "::1"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "broker:1883",
        "http://broker",
        "mqtt://",
        "mqtt://:1883",
        "mqtt://broker:port",
        "mqtt://broker:99999",
        "mqtt://user:secr/et@broker",
        "mqtt://user:secret@broker/topic",
        "mqtt://user:secret@broker?version=4",
        "mqtt://user:secret@broker?versoin=5",
        "mqtt://user:secret@[::1",
        "mqtt://user:secret@" + "a" * 70,
        "ftp://user:secret@broker",
    ],
)
def test_bad_address_is_one_sentence_without_the_password(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        open_channel(url)
    assert "secr" not in str(caught.value)
    assert "mqtt" in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_a_certificate_file_for_a_connection_that_checks_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"of broker: \?ca= .* only mqtts://"):
        parse_mqtt_url("mqtt://user:password@broker?ca=/etc/ca.pem")


def test_port_0_is_refused() -> None:
    with pytest.raises(ConfigError, match="of broker: port 0"):
        parse_mqtt_url("mqtt://user:password@broker:0")


async def test_missing_certificate_file_is_a_config_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.pem"):
        async with open_channel(f"mqtts://127.0.0.1:1?ca={tmp_path}/none.pem"):
            pass


def quick(url: str, *, refused_s: float = 15.0, **options: object) -> MqttChannel:
    """A channel that does not wait long before it tries again."""
    return MqttChannel(url, retry=Retry(0.02, 0.1, refused_s), **options)  # type: ignore[arg-type]


async def test_mqtt5_carries_the_facts_as_properties(mqtt_url: str) -> None:
    address = parse_mqtt_url(mqtt_url)
    reader = aiomqtt.Client(address.host, address.port, protocol=aiomqtt.ProtocolVersion.V5)
    async with reader, quick(mqtt_url, root="facts") as channel:
        await reader.subscribe("facts/#")
        await channel.wait_connected(LIMIT_S)
        facts = Delivery(expiry_s=7, content_type="image/png", properties={"epoch": "1", "sequence": "2"})
        await channel.publish("cam-1/mask", b"png", facts)
        async with asyncio.timeout(LIMIT_S):
            message = await anext(reader.messages)
    properties = message.properties
    assert properties is not None
    assert properties.ContentType == "image/png"
    assert 0 < properties.MessageExpiryInterval <= 7
    assert properties.UserProperty == [("epoch", "1"), ("sequence", "2")]


@pytest.mark.parametrize("connected", [True, False], ids=["at once", "with the next connection"])
async def test_a_topic_that_was_cleared_is_not_kept(own_mosquitto: Server, connected: bool) -> None:
    url = f"mqtt://127.0.0.1:{own_mosquitto.port}"
    async with quick(url) as channel, quick(url) as witness:
        if connected:
            await channel.wait_connected(LIMIT_S)
        for topic in ("cam-1/state", "cam-2/state"):
            await channel.publish(topic, b"online", STATE)
        await channel.publish("cam-1/state", b"", STATE)
        await channel.wait_connected(LIMIT_S)
        assert set(channel._retained) == {"cam-2/state"}
        states = witness.subscribe("+/state")
        await witness.wait_connected(LIMIT_S)
        assert [message.topic for message in await take(states)] == ["cam-2/state"]


async def test_channel_waits_for_an_absent_broker_and_says_so_once(own_mosquitto: Server) -> None:
    own_mosquitto.kill()
    with structlog.testing.capture_logs() as logs:
        async with quick(f"mqtt://127.0.0.1:{own_mosquitto.port}") as channel:
            with pytest.raises(TransportError, match=str(own_mosquitto.port)):
                await channel.wait_connected(0.3)
            assert not channel.connected
            own_mosquitto.start()
            await channel.wait_connected(LIMIT_S)
    waiting = [line for line in logs if line["log_level"] == "warning"]
    assert [line["event"] for line in waiting] == ["waiting for the broker"]
    assert waiting[0]["address"] == f"127.0.0.1:{own_mosquitto.port}"
    assert [line["event"] for line in logs if line["log_level"] == "info"] == ["connected to the broker"]


@pytest.mark.parametrize("version", ["", "?version=3.1.1"])
async def test_a_broker_that_goes_without_a_word_is_said_to_have_cut_the_connection(
    own_mosquitto: Server, version: str
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with quick(f"mqtt://127.0.0.1:{own_mosquitto.port}{version}") as channel:
            await channel.wait_connected(LIMIT_S)
            own_mosquitto.kill()
            await until(lambda: not channel.connected and any(line["log_level"] == "warning" for line in logs))
    assert next(line["reason"] for line in logs if line["log_level"] == "warning") == "the connection was cut"


async def test_subscriptions_and_state_come_back_after_the_broker_was_killed(own_mosquitto: Server) -> None:
    url = f"mqtt://127.0.0.1:{own_mosquitto.port}"
    async with quick(url) as sender, quick(url) as receiver:
        latents = receiver.subscribe("+/latent")
        await ready(sender)
        await sender.publish("cam-1/state", b"online", STATE)
        for round_ in range(3):
            own_mosquitto.kill()
            await until(lambda: not sender.connected and not receiver.connected)
            await sender.publish("cam-1/state", f"online {round_}".encode(), STATE)
            with pytest.raises(TransportError):
                await sender.publish("cam-1/latent", b"lost")
            own_mosquitto.start()
            await sender.wait_connected(LIMIT_S)
            await receiver.wait_connected(LIMIT_S)
            states = receiver.subscribe("+/state")
            assert (await take(states))[0].payload == f"online {round_}".encode()
            await sender.publish("cam-1/latent", bytes([round_]))
            assert await take(latents) == [Message("cam-1/latent", bytes([round_]))]


class Link:
    """A TCP way to a port that can be cut, swallow what comes, or refuse MQTT 5 as an old broker does."""

    def __init__(self, to_port: int) -> None:
        self.port = free_port()
        self.swallows = False
        self.refuses_5 = False
        self.versions: list[int] = []
        self._to_port = to_port
        self._writers: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Link":
        self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.cut()

    def cut(self) -> None:
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        try:
            hello = await reader.read(4096)
            self.versions.append(hello[hello.index(b"MQTT") + 4])
            if self.refuses_5 and self.versions[-1] == 5:
                writer.write(b"\x20\x02\x00\x01")
                writer.close()
                return
            if self.swallows:
                await reader.read(-1)
                return
            onward, there = await asyncio.open_connection("127.0.0.1", self._to_port)
            self._writers.append(there)
            there.write(hello)
            await asyncio.gather(self._copy(reader, there), self._copy(onward, writer))
        except (ConnectionError, ValueError, asyncio.CancelledError):
            return  # the end of a way is not worth a word, and asyncio.start_server would log it

    @staticmethod
    async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()


async def test_will_is_published_when_the_connection_is_cut(mqtt_url: str) -> None:
    async with Link(parse_mqtt_url(mqtt_url).port) as link, quick(mqtt_url, root="cut") as receiver:
        states = receiver.subscribe("+/state")
        await ready(receiver)
        url, will = f"mqtt://127.0.0.1:{link.port}", ("cam-1/state", b"offline")
        async with quick(url, root="cut", will=will) as sender:
            await sender.publish("cam-1/state", b"online", STATE)
            await sender.wait_connected(LIMIT_S)
            link.cut()
            # After the cut it connects again by itself, and so says that it is there.
            assert [m.payload for m in await take(states, 3)] == [b"online", b"offline", b"online"]
            await sender.publish("cam-1/state", b"", STATE)


async def test_old_broker_that_refuses_mqtt_5_gets_3_1_1(mqtt_url: str) -> None:
    async with Link(parse_mqtt_url(mqtt_url).port) as link:
        link.refuses_5 = True
        async with quick(f"mqtt://127.0.0.1:{link.port}") as channel:
            messages = channel.subscribe("cam-1/latent")
            await ready(channel)
            await channel.publish("cam-1/latent", b"x", Delivery(content_type="image/png"))
            assert len(await take(messages)) == 1
        assert link.versions == [5, 4]


async def test_given_version_is_kept(mqtt_url: str) -> None:
    async with Link(parse_mqtt_url(mqtt_url).port) as link:
        link.refuses_5 = True
        async with quick(f"mqtt://127.0.0.1:{link.port}?version=5") as channel:
            await until(lambda: len(link.versions) >= 3)
            assert not channel.connected
        assert set(link.versions) == {5}


class ThinLink:
    """A TCP way to a port that carries so many bytes a second and holds next to none."""

    def __init__(self, to_port: int, *, rate: int) -> None:
        self.passed = 0
        self._to_port, self._rate = to_port, rate

    async def __aenter__(self) -> "ThinLink":
        listening = socket.socket()
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        listening.bind(("127.0.0.1", 0))
        self.port = listening.getsockname()[1]
        self._server = await asyncio.start_server(self._carry, sock=listening, limit=1024)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward, there = await asyncio.open_connection("127.0.0.1", self._to_port)
        back = asyncio.create_task(Link._copy(onward, writer))
        try:
            while data := await reader.read(600):
                there.write(data)
                self.passed += len(data)
                await asyncio.sleep(len(data) / self._rate)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            there.close()
            back.cancel()


async def test_a_thin_link_holds_back_the_sender_instead_of_filling_up(mqtt_url: str) -> None:
    accepted = 0
    async with (
        ThinLink(parse_mqtt_url(mqtt_url).port, rate=8000) as link,
        quick(f"mqtt://127.0.0.1:{link.port}") as channel,
    ):
        await channel.wait_connected(LIMIT_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while accepted < 1_000_000:
                    await channel.publish("cam-1/latent", bytes(1000))
                    accepted += 1000
        assert accepted - link.passed < 16_000  # what waits in the link: two seconds of it


async def test_a_client_that_another_of_its_name_throws_out_says_so_once(mqtt_url: str) -> None:
    address = parse_mqtt_url(mqtt_url)
    with structlog.testing.capture_logs() as logs:
        async with quick(mqtt_url, client_id="twin") as channel:
            for _ in range(5):
                await channel.wait_connected(LIMIT_S)
                async with aiomqtt.Client(address.host, address.port, identifier="twin"):
                    await until(lambda: not channel.connected)
            await channel.wait_connected(LIMIT_S)
    assert [line["client"] for line in logs if "same name" in line["event"]] == ["twin"]


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"-ERR unknown command\r\n", b"\x15\x03\x03\0\2\2F"]
)
async def test_what_is_no_mqtt_broker_is_asked_about_without_a_traceback(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(mqtt_client, "ANSWER_S", 0.2)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(answer)

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with quick(f"mqtt://127.0.0.1:{port}") as channel:
            with pytest.raises(TransportError, match="is this an MQTT port, and mqtt:// or mqtts:// right"):
                await channel.wait_connected(0.8)
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_fifty_reconnects_leave_no_task_and_no_socket(mqtt_url: str) -> None:
    async with Link(parse_mqtt_url(mqtt_url).port) as link:
        tasks, files = len(asyncio.all_tasks()), open_files()
        url = f"mqtt://127.0.0.1:{link.port}"
        async with MqttChannel(url, retry=Retry(0.001, 0.001)) as channel:
            for made in range(1, 51):
                await until(lambda made=made: len(link.versions) >= made and channel.connected)
                link.cut()
        link.cut()
        gc.collect()
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: open_files() <= files)


async def test_leaving_while_the_broker_does_not_answer_is_quick_and_leaves_no_socket(mqtt_url: str) -> None:
    async with Link(parse_mqtt_url(mqtt_url).port) as link:
        link.swallows = True
        tasks, files = len(asyncio.all_tasks()), open_files()
        async with quick(f"mqtt://127.0.0.1:{link.port}"):
            await until(lambda: bool(link.versions))
            begun = asyncio.get_running_loop().time()
        assert asyncio.get_running_loop().time() - begun < 2
        link.cut()
        await until(lambda: len(asyncio.all_tasks()) <= tasks)
        await until(lambda: open_files() <= files)


async def test_live_message_into_a_stalled_link_fails_in_bounded_time(mqtt_url: str) -> None:
    stalled = asyncio.Event()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(b"\x20\x03\x00\x00\x00")
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        await stalled.wait()
        writer.close()

    async with await asyncio.start_server(accept, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        async with quick(f"mqtt://127.0.0.1:{port}") as channel:
            await channel.wait_connected(LIMIT_S)
            with pytest.raises(TransportError):
                async with asyncio.timeout(LIMIT_S):
                    while True:
                        await channel.publish("cam-1/latent", bytes(1 << 20))
            for _ in range(2):  # nor is it kept, to come when the link does again
                with pytest.raises(TransportError, match=r"the broker at .* did not take a message"):
                    await channel.publish("cam-1/latent", bytes(1 << 20))
            assert len(channel._client._client._out_packet) == 1
            stalled.set()


async def test_wrong_password_is_an_error_that_names_user_and_broker(tmp_path: Path) -> None:
    with mosquitto(tmp_path, user="cam", password="s3cret") as server:
        url = f"mqtt://cam:wrong-one@127.0.0.1:{server.port}"
        with structlog.testing.capture_logs() as logs:
            async with quick(url, refused_s=0.05) as channel:
                with pytest.raises(TransportError):
                    await channel.wait_connected(0.5)
        errors = [line for line in logs if line["log_level"] == "error"]
        assert len(errors) == 1
        assert "'cam'" in errors[0]["event"]
        assert errors[0]["address"] == f"127.0.0.1:{server.port}"
        assert "wrong-one" not in str(logs)
        async with quick(f"mqtt://cam:s3cret@127.0.0.1:{server.port}") as channel:
            await channel.wait_connected(LIMIT_S)


async def test_mosquitto_sub_gets_the_bytes(mqtt_url: str) -> None:
    port = str(parse_mqtt_url(mqtt_url).port)
    program = find_program("mosquitto_sub", "mosquitto-clients")
    command = [program, "-p", port, "-t", "tool/+/mask", "-C", "1", "-N", "-W", "10"]
    async with quick(mqtt_url, root="tool") as channel:
        await channel.wait_connected(LIMIT_S)
        running = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE)
        answer = asyncio.create_task(running.communicate())
        while not answer.done():
            await channel.publish("cam-1/mask", b"\x89PNG\x00\n")
            await asyncio.sleep(0.05)
        assert (await answer)[0] == b"\x89PNG\x00\n"
